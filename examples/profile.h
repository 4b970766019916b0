/*  profile.h: where the time goes, by operator: the clock behind `mamba bench --profile`.
 *
 *  The implementation marks the start of each operator with MAMBA_PROFILE(name); time counts for a
 * name until the next mark.  Marks come from the calling thread only, between parallel regions.
 */
#ifndef PROFILE_H
#define PROFILE_H

enum { PROFILE_NAMES = 32 };

static struct {
    int on, n, current; /* current -1: time that belongs to nobody */
    double since;
    const char *names[PROFILE_NAMES];
    double seconds[PROFILE_NAMES];
} profile;

/* Names are string literals; NULL ends the last one. */
static void profile_mark(const char *name) {
    double now;
    int i;
    if (!profile.on) {
        return;
    }
    now = cli_seconds();
    if (profile.current >= 0) {
        profile.seconds[profile.current] += now - profile.since;
    }
    profile.since = now;
    profile.current = -1;
    for (i = 0; name != NULL && i < PROFILE_NAMES; i++) {
        if (i == profile.n) {
            profile.names[profile.n++] = name;
        }
        if (strcmp(profile.names[i], name) == 0) {
            profile.current = i;
            break;
        }
    }
}

#define MAMBA_PROFILE(name) profile_mark(name)

#endif /* PROFILE_H */
