/*  pickle.h: reads the pickle of a PyTorch state dict into inert nodes. Nothing in it is ever
 *  executed.
 *
 *  An allow-list of opcodes (protocol 2 to 5, binary forms only) and of names: torch._utils
 *  _rebuild_tensor_v2 and _rebuild_parameter, collections OrderedDict, the storage classes of
 *  torch. Every other opcode or name is refused with its offset: such a file wants to run code.
 *  REDUCE, BUILD and BINPERSID are accepted only in the exact shapes that torch.save writes.
 *
 *  Values are nodes in one array, shared by index (a memo bomb costs nothing), so neither reading
 *  nor freeing is recursive. Every node and cell answers to a byte of the pickle, so memory is
 *  bounded by it.
 */
#ifndef TL_PICKLE_H
#define TL_PICKLE_H

#include "base.h"
#include "json.h"   /* json_utf8 */

#define PKL_NIL 0xffffffffu

typedef enum {
    PKL_NONE, PKL_BOOL, PKL_INT, PKL_FLOAT, PKL_STRING, PKL_TUPLE, PKL_LIST, PKL_DICT, PKL_GLOBAL,
    PKL_STORAGE, PKL_TENSOR
} pkl_type;

typedef enum {
    PKL_ORDERED_DICT, PKL_REBUILD_TENSOR, PKL_REBUILD_PARAMETER,
    PKL_STORAGES    /* from here on: the storage classes, in the order of pkl_globals */
} pkl_global;

typedef struct {
    uint32_t type;
    uint32_t first;   /* tuple, list, dict: first cell; storage: its key; tensor: its storage */
    uint32_t last;    /* tuple, list, dict: last cell; tensor: node of its shape */
    uint32_t count;   /* string: bytes; tuple, list: items; dict: keys; tensor: its strides */
    int64_t value;    /* integer; string: offset; global, storage: pkl_global; tensor: its offset */
    int64_t extra;    /* storage: number of elements */
    uint64_t place;   /* storage: offset of its bytes in the file; the caller sets it, 0: not yet */
} pkl_node;

typedef struct {
    uint32_t node, next;
} pkl_cell;

typedef struct {
    const char *text;            /* must outlive this */
    size_t length;               /* bytes of the pickle, STOP included */
    uint32_t root;
    pkl_node *nodes;
    size_t node_count, node_capacity;
    pkl_cell *cells;             /* what tuples, lists and dicts (key, value, key, ...) hold */
    size_t cell_count, cell_capacity;
} pkl_data;

static const struct {
    const char *module, *name;
} pkl_globals[] = {{"collections", "OrderedDict"},
                   {"torch._utils", "_rebuild_tensor_v2"},
                   {"torch._utils", "_rebuild_parameter"},
                   {"torch", "FloatStorage"},
                   {"torch", "HalfStorage"},
                   {"torch", "BFloat16Storage"},
                   {"torch", "DoubleStorage"},
                   {"torch", "LongStorage"},
                   {"torch", "IntStorage"},
                   {"torch", "ShortStorage"},
                   {"torch", "CharStorage"},
                   {"torch", "ByteStorage"},
                   {"torch", "BoolStorage"}};

typedef struct {
    pkl_data *out;
    const unsigned char *text;
    size_t at, end, op_at;       /* op_at: of the opcode at work, for messages */
    uint64_t base;               /* offset of the pickle in its file */
    const char *name;            /* of the file, for messages */
    int legacy;
    uint32_t *stack;
    size_t depth, stack_capacity;
    uint32_t *marks;
    size_t mark_count, mark_capacity;
    uint32_t *memo;              /* by index, PKL_NIL where nothing was put */
    size_t memo_count, memo_capacity, memo_next;   /* memo_next: where MEMOIZE puts */
    tl_error *err;
} pkl_reader;

TL_FN void pkl_free(pkl_data *data)
{
    tl_free(data->nodes);
    tl_free(data->cells);
    memset(data, 0, sizeof *data);
}

TL_FN tl_status pkl_fault(pkl_reader *r, tl_status status, const char *found, const char *allowed)
{
    tl_quoted q;
    return tl_fail(r->err, status, "%s: byte %llu: pickle: found %s, allowed: %s",
                   tl_path(&q, r->name), (unsigned long long)(r->base + r->op_at),
                   found, allowed);
}

TL_FN tl_status pkl_bad(pkl_reader *r, const char *found, const char *allowed)
{
    return pkl_fault(r, TL_ERR_FORMAT, found, allowed);
}

/* ---- nodes, cells, stack, memo --------------------------------------------------------------- */

TL_FN tl_status pkl_push(pkl_reader *r, uint32_t node)
{
    void *p = r->stack;
    int ok = tl_grow(&p, &r->stack_capacity, r->depth, sizeof r->stack[0], r->err);
    r->stack = (uint32_t *)p;
    if (!ok) {
        return TL_ERR_MEMORY;
    }
    r->stack[r->depth++] = node;
    return TL_OK;
}

/* A new node on the stack; its fields are zero but for the type. */
TL_FN tl_status pkl_new(pkl_reader *r, pkl_type type, pkl_node **node)
{
    pkl_data *d = r->out;
    void *p = d->nodes;
    int ok = tl_grow(&p, &d->node_capacity, d->node_count, sizeof d->nodes[0], r->err);
    d->nodes = (pkl_node *)p;
    if (!ok) {
        return TL_ERR_MEMORY;
    }
    *node = &d->nodes[d->node_count];
    memset(*node, 0, sizeof **node);
    (*node)->type = (uint32_t)type;
    (*node)->first = (*node)->last = PKL_NIL;
    return pkl_push(r, (uint32_t)d->node_count++);
}

TL_FN tl_status pkl_append(pkl_reader *r, uint32_t container, uint32_t item)
{
    pkl_data *d = r->out;
    void *p = d->cells;
    int ok = tl_grow(&p, &d->cell_capacity, d->cell_count, sizeof d->cells[0], r->err);
    pkl_node *c = &d->nodes[container];
    d->cells = (pkl_cell *)p;
    if (!ok) {
        return TL_ERR_MEMORY;
    }
    d->cells[d->cell_count].node = item;
    d->cells[d->cell_count].next = PKL_NIL;
    if (c->first == PKL_NIL) {
        c->first = (uint32_t)d->cell_count;
    } else {
        d->cells[c->last].next = (uint32_t)d->cell_count;
    }
    c->last = (uint32_t)d->cell_count++;
    return TL_OK;
}

/* Are there n values above the innermost mark? */
TL_FN int pkl_has(const pkl_reader *r, size_t n)
{
    size_t floor = r->mark_count != 0 ? r->marks[r->mark_count - 1] : 0;
    return r->depth - floor >= n;
}

TL_FN pkl_node *pkl_top(pkl_reader *r, size_t below)
{
    return &r->out->nodes[r->stack[r->depth - 1 - below]];
}

TL_FN tl_status pkl_underflow(pkl_reader *r)
{
    return pkl_bad(r, "too few values on the stack", "the operands of the opcode");
}

TL_FN tl_status pkl_put(pkl_reader *r, uint64_t index)
{
    if (!pkl_has(r, 1)) {
        return pkl_underflow(r);
    }
    if (index > r->end) {   /* each entry takes bytes: no genuine index exceeds the length */
        return pkl_bad(r, "a memo index above the length of the pickle", "indices counted from 0");
    }
    while (r->memo_count <= index) {
        void *p = r->memo;
        int ok = tl_grow(&p, &r->memo_capacity, r->memo_count, sizeof r->memo[0], r->err);
        r->memo = (uint32_t *)p;
        if (!ok) {
            return TL_ERR_MEMORY;
        }
        r->memo[r->memo_count++] = PKL_NIL;
    }
    r->memo_next += r->memo[index] == PKL_NIL;
    r->memo[index] = r->stack[r->depth - 1];
    return TL_OK;
}

TL_FN tl_status pkl_get(pkl_reader *r, uint64_t index)
{
    if (index >= r->memo_count || r->memo[index] == PKL_NIL) {
        return pkl_bad(r, "a memo index that nothing was put to", "an earlier index");
    }
    return pkl_push(r, r->memo[index]);
}

/* ---- operands -------------------------------------------------------------------------------- */

/* n little-endian bytes as a number. */
TL_FN int pkl_number(pkl_reader *r, size_t n, uint64_t *value)
{
    uint64_t v = 0;
    if (r->end - r->at < n) {
        return 0;
    }
    for (size_t i = n; i-- > 0;) {
        v = v << 8 | r->text[r->at + i];
    }
    r->at += n;
    *value = v;
    return 1;
}

TL_FN tl_status pkl_cut(pkl_reader *r)
{
    return pkl_bad(r, "the end of the pickle inside an opcode", "its operand and STOP");
}

TL_FN tl_status pkl_int(pkl_reader *r, pkl_type type, int64_t value)
{
    pkl_node *node;
    tl_status status = pkl_new(r, type, &node);
    if (status == TL_OK) {
        node->value = value;
    }
    return status;
}

/* LONG1: a two's complement of `n` bytes. */
TL_FN tl_status pkl_long(pkl_reader *r, uint64_t n)
{
    uint64_t v = 0;
    if (n > 8) {
        return pkl_bad(r, "an integer of more than 8 bytes", "64-bit integers");
    }
    if (!pkl_number(r, (size_t)n, &v)) {
        return pkl_cut(r);
    }
    if (n > 0 && n < 8 && (v >> (8 * n - 1) & 1) != 0) {
        v |= UINT64_MAX << (8 * n);
    }
    return pkl_int(r, PKL_INT, v <= INT64_MAX ? (int64_t)v : -(int64_t)(UINT64_MAX - v) - 1);
}

/* A string whose length has `width` bytes. */
TL_FN tl_status pkl_string(pkl_reader *r, size_t width)
{
    uint64_t n;
    pkl_node *node;
    tl_status status;
    if (!pkl_number(r, width, &n) || n > r->end - r->at) {
        return pkl_cut(r);
    }
    if (n > 0x7fffffff) {
        return pkl_bad(r, "a string of 2 GiB or more", "shorter strings");
    }
    for (size_t i = 0; i < n;) {
        size_t step = json_utf8(r->text + r->at + i, (size_t)n - i);
        if (step == 0) {
            return pkl_bad(r, "a string that is not UTF-8", "UTF-8");
        }
        i += step;
    }
    status = pkl_new(r, PKL_STRING, &node);
    if (status == TL_OK) {
        node->value = (int64_t)r->at;
        node->count = (uint32_t)n;
        r->at += (size_t)n;
    }
    return status;
}

/* The name `module name`: in the list, or refused. */
TL_FN tl_status pkl_global_named(pkl_reader *r, const char *module, size_t module_length,
                                 const char *name, size_t name_length)
{
    tl_quoted m, n;
    char found[300];
    for (size_t i = 0; i < sizeof pkl_globals / sizeof pkl_globals[0]; i++) {
        if (tl_compare(module, module_length, pkl_globals[i].module,
                       strlen(pkl_globals[i].module)) == 0 &&
            tl_compare(name, name_length, pkl_globals[i].name, strlen(pkl_globals[i].name)) == 0) {
            return pkl_int(r, PKL_GLOBAL, (int64_t)i);
        }
    }
    (void)snprintf(found, sizeof found, "the name '%s %s'", tl_quote(&m, module, module_length),
                   tl_quote(&n, name, name_length));
    return pkl_fault(
        r, TL_ERR_UNSUPPORTED, found,
        "tensors, OrderedDict and storages of torch (the file would run code; nothing was run)");
}

/* GLOBAL: two lines. */
TL_FN tl_status pkl_global_op(pkl_reader *r)
{
    size_t start[2], length[2];
    for (int i = 0; i < 2; i++) {
        const void *newline = memchr(r->text + r->at, '\n', r->end - r->at);
        if (newline == NULL) {
            return pkl_cut(r);
        }
        start[i] = r->at;
        length[i] = (size_t)((const unsigned char *)newline - (r->text + r->at));
        r->at += length[i] + 1;
    }
    return pkl_global_named(r, r->out->text + start[0], length[0], r->out->text + start[1],
                            length[1]);
}

TL_FN tl_status pkl_stack_global(pkl_reader *r)
{
    pkl_node m, n;
    if (!pkl_has(r, 2)) {
        return pkl_underflow(r);
    }
    m = *pkl_top(r, 1);
    n = *pkl_top(r, 0);
    if (m.type != PKL_STRING || n.type != PKL_STRING) {
        return pkl_bad(r, "STACK_GLOBAL on other values", "two strings");
    }
    r->depth -= 2;
    return pkl_global_named(r, r->out->text + m.value, m.count, r->out->text + n.value, n.count);
}

/* ---- containers ------------------------------------------------------------------------------ */

/* The top n values become a tuple. */
TL_FN tl_status pkl_tuple(pkl_reader *r, size_t n)
{
    size_t from = r->depth - n;
    pkl_node *node;
    uint32_t id;
    tl_status status = pkl_new(r, PKL_TUPLE, &node);
    if (status != TL_OK) {
        return status;
    }
    node->count = (uint32_t)n;
    id = r->stack[r->depth - 1];
    for (size_t i = 0; status == TL_OK && i < n; i++) {
        status = pkl_append(r, id, r->stack[from + i]);
    }
    r->depth = from;
    return status == TL_OK ? pkl_push(r, id) : status;
}

/* Appends the top n values to the list or dict below them. */
TL_FN tl_status pkl_extend(pkl_reader *r, size_t n, pkl_type type)
{
    tl_status status = TL_OK;
    size_t from = r->depth - n;
    uint32_t id;
    pkl_node *node;
    if (!pkl_has(r, n + 1)) {
        return pkl_underflow(r);
    }
    id = r->stack[from - 1];
    node = &r->out->nodes[id];
    if (node->type != (uint32_t)type) {
        return type == PKL_DICT ? pkl_bad(r, "SETITEM on something else", "a dict")
                                : pkl_bad(r, "APPEND on something else", "a list");
    }
    if (type == PKL_DICT && n % 2 != 0) {
        return pkl_bad(r, "SETITEMS with an odd number of values", "keys with their values");
    }
    node->count += (uint32_t)(type == PKL_DICT ? n / 2 : n);
    for (size_t i = 0; status == TL_OK && i < n; i++) {
        status = pkl_append(r, id, r->stack[from + i]);
    }
    r->depth = from;
    return status;
}

/* Takes the innermost mark; *n is the number of values above it. */
TL_FN int pkl_unmark(pkl_reader *r, size_t *n)
{
    if (r->mark_count == 0) {
        return 0;
    }
    *n = r->depth - r->marks[--r->mark_count];
    return 1;
}

TL_FN tl_status pkl_mark(pkl_reader *r)
{
    void *p = r->marks;
    int ok = tl_grow(&p, &r->mark_capacity, r->mark_count, sizeof r->marks[0], r->err);
    r->marks = (uint32_t *)p;
    if (!ok) {
        return TL_ERR_MEMORY;
    }
    r->marks[r->mark_count++] = (uint32_t)r->depth;
    return TL_OK;
}

/* ---- the shapes that torch.save writes ------------------------------------------------------- */

/* The nodes of a tuple of at most 7. Returns their number, -1 if it is no such tuple. */
TL_FN int pkl_items(const pkl_data *d, uint32_t tuple, uint32_t items[7])
{
    const pkl_node *t = &d->nodes[tuple];
    int n = 0;
    if (t->type != PKL_TUPLE || t->count > 7) {
        return -1;
    }
    for (uint32_t c = t->first; c != PKL_NIL; c = d->cells[c].next) {
        items[n++] = d->cells[c].node;
    }
    return n;
}

TL_FN int pkl_is(const pkl_data *d, uint32_t node, pkl_type type)
{
    return d->nodes[node].type == (uint32_t)type;
}

/* Only integers >= 0 in this tuple? */
TL_FN int pkl_sizes(const pkl_data *d, uint32_t tuple)
{
    const pkl_node *t = &d->nodes[tuple];
    if (t->type != PKL_TUPLE) {
        return 0;
    }
    for (uint32_t c = t->first; c != PKL_NIL; c = d->cells[c].next) {
        const pkl_node *item = &d->nodes[d->cells[c].node];
        if (item->type != PKL_INT || item->value < 0) {
            return 0;
        }
    }
    return 1;
}

/* BINPERSID: ('storage', class, key, location, numel); the legacy format adds a view, None. */
TL_FN tl_status pkl_storage(pkl_reader *r)
{
    pkl_data *d = r->out;
    uint32_t a[7];
    const pkl_node *word;
    pkl_node *node;
    tl_status status;
    int n = pkl_has(r, 1) ? pkl_items(d, r->stack[r->depth - 1], a) : -1, want = r->legacy ? 6 : 5;
    word = n >= want ? &d->nodes[a[0]] : NULL;
    if (n != want || word->type != PKL_STRING ||
        tl_compare(d->text + word->value, word->count, "storage", 7) != 0 ||
        !pkl_is(d, a[1], PKL_GLOBAL) || d->nodes[a[1]].value < PKL_STORAGES ||
        !pkl_is(d, a[2], PKL_STRING) || !pkl_is(d, a[3], PKL_STRING) || !pkl_is(d, a[4], PKL_INT) ||
        d->nodes[a[4]].value < 0 || (n == 6 && !pkl_is(d, a[5], PKL_NONE))) {
        return pkl_bad(r, "another persistent id",
                       "('storage', class, key, location, number of elements)");
    }
    r->depth--;
    status = pkl_new(r, PKL_STORAGE, &node);
    if (status == TL_OK) {
        node->first = a[2];
        node->value = d->nodes[a[1]].value;
        node->extra = d->nodes[a[4]].value;
    }
    return status;
}

TL_FN tl_status pkl_rebuild_tensor(pkl_reader *r, const uint32_t *a, int n)
{
    pkl_data *d = r->out;
    pkl_node *node;
    tl_status status;
    if (n < 6 || n > 7 || !pkl_is(d, a[0], PKL_STORAGE) || !pkl_is(d, a[1], PKL_INT) ||
        d->nodes[a[1]].value < 0 || !pkl_sizes(d, a[2]) || !pkl_sizes(d, a[3]) ||
        !pkl_is(d, a[4], PKL_BOOL) || d->nodes[a[2]].count != d->nodes[a[3]].count ||
        !pkl_is(d, a[5], PKL_DICT) ||
        (n == 7 && !pkl_is(d, a[6], PKL_NONE) &&
         !(pkl_is(d, a[6], PKL_DICT) && d->nodes[a[6]].count == 0))) {
        return pkl_bad(r, "other arguments of _rebuild_tensor_v2",
                       "(storage, offset, shape, strides, requires_grad, hooks)");
    }
    r->depth -= 2;
    status = pkl_new(r, PKL_TENSOR, &node);
    if (status == TL_OK) {
        node->first = a[0];
        node->value = d->nodes[a[1]].value;
        node->last = a[2];
        node->count = a[3];
    }
    return status;
}

TL_FN tl_status pkl_reduce(pkl_reader *r)
{
    pkl_data *d = r->out;
    uint32_t a[7];
    int n;
    pkl_node *node;
    if (!pkl_has(r, 2)) {
        return pkl_underflow(r);
    }
    n = pkl_items(d, r->stack[r->depth - 1], a);
    if (pkl_top(r, 1)->type != PKL_GLOBAL || n < 0) {
        return pkl_bad(r, "REDUCE on something else", "a known name and a tuple");
    }
    switch (pkl_top(r, 1)->value) {
    case PKL_REBUILD_TENSOR:
        return pkl_rebuild_tensor(r, a, n);
    case PKL_REBUILD_PARAMETER:
        if (n != 3 || !pkl_is(d, a[0], PKL_TENSOR) || !pkl_is(d, a[1], PKL_BOOL) ||
            !pkl_is(d, a[2], PKL_DICT)) {
            return pkl_bad(r, "other arguments of _rebuild_parameter",
                           "(tensor, requires_grad, hooks)");
        }
        r->depth -= 2;
        return pkl_push(r, a[0]);
    case PKL_ORDERED_DICT:
        if (n != 0) {
            return pkl_bad(r, "OrderedDict with arguments",
                           "an empty one that is filled afterwards");
        }
        r->depth -= 2;
        return pkl_new(r, PKL_DICT, &node);
    default:
        return pkl_bad(r, "a call of a storage class", "no such call");
    }
}

/* BUILD: the attributes of a state dict (its _metadata) are a dict; they carry no weights. */
TL_FN tl_status pkl_build(pkl_reader *r)
{
    if (!pkl_has(r, 2)) {
        return pkl_underflow(r);
    }
    if (pkl_top(r, 0)->type != PKL_DICT || pkl_top(r, 1)->type != PKL_DICT) {
        return pkl_bad(r, "BUILD on something else", "an OrderedDict with a dict of attributes");
    }
    r->depth--;
    return TL_OK;
}

/* ---- the machine ----------------------------------------------------------------------------- */

TL_FN tl_status pkl_refuse(pkl_reader *r, unsigned op)
{
    static const struct {
        unsigned char op;
        const char *name;
    } names[] = {{'0', "POP"},
                 {'1', "POP_MARK"},
                 {'2', "DUP"},
                 {'F', "FLOAT"},
                 {'I', "INT"},
                 {'L', "LONG"},
                 {'P', "PERSID"},
                 {'S', "STRING"},
                 {'T', "BINSTRING"},
                 {'U', "SHORT_BINSTRING"},
                 {'V', "UNICODE"},
                 {'B', "BINBYTES"},
                 {'C', "SHORT_BINBYTES"},
                 {'d', "DICT"},
                 {'l', "LIST"},
                 {'g', "GET"},
                 {'p', "PUT"},
                 {'i', "INST"},
                 {'o', "OBJ"},
                 {0x81, "NEWOBJ"},
                 {0x82, "EXT1"},
                 {0x83, "EXT2"},
                 {0x84, "EXT4"},
                 {0x8e, "BINBYTES8"},
                 {0x8f, "EMPTY_SET"},
                 {0x90, "ADDITEMS"},
                 {0x91, "FROZENSET"},
                 {0x92, "NEWOBJ_EX"},
                 {0x96, "BYTEARRAY8"},
                 {0x97, "NEXT_BUFFER"},
                 {0x98, "READONLY_BUFFER"}};
    const char *name = "unknown";
    char found[48];
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
        if (names[i].op == op) {
            name = names[i].name;
        }
    }
    (void)snprintf(found, sizeof found, "opcode 0x%02x (%s)", op, name);
    return pkl_fault(
        r, TL_ERR_UNSUPPORTED, found,
        "what torch.save writes for a state dict (re-save the weights as safetensors)");
}

/* Opcodes with a numeric operand of fixed width. */
TL_FN tl_status pkl_numeric(pkl_reader *r, unsigned op, size_t width)
{
    uint64_t v;
    if (!pkl_number(r, width, &v)) {
        return pkl_cut(r);
    }
    switch (op) {
    case 'K':
    case 'M':
        return pkl_int(r, PKL_INT, (int64_t)v);
    case 'J':
        return pkl_int(r, PKL_INT, v < 0x80000000u ? (int64_t)v : (int64_t)v - ((int64_t)1 << 32));
    case 'G':
        return pkl_int(r, PKL_FLOAT, 0);   /* no float of a state dict means anything here */
    case 'q':
    case 'r':
        return pkl_put(r, v);
    case 'h':
    case 'j':
        return pkl_get(r, v);
    case 0x8a:
        return pkl_long(r, v);
    case 0x8b:
        return v > 8 ? pkl_bad(r, "an integer of more than 8 bytes", "64-bit integers")
                     : pkl_long(r, v);
    case 0x95:
        return v <= r->end - r->at
                 ? TL_OK
                 : pkl_bad(r, "a frame longer than the pickle", "frames inside it");
    default:   /* PROTO */
        if (r->op_at != 0 || v < 2 || v > 5) {
            return pkl_bad(r, "another protocol or a second PROTO",
                           "protocol 2 to 5, first of all");
        }
        return TL_OK;
    }
}

TL_FN tl_status pkl_op(pkl_reader *r, unsigned op)
{
    size_t n;
    pkl_node *node;
    switch (op) {
    case 0x80: case 'K': case 'q': case 'h': case 0x8a:
        return pkl_numeric(r, op, 1);
    case 'M':
        return pkl_numeric(r, op, 2);
    case 'J': case 'r': case 'j': case 0x8b:
        return pkl_numeric(r, op, 4);
    case 'G': case 0x95:
        return pkl_numeric(r, op, 8);
    case 0x8c:
        return pkl_string(r, 1);
    case 'X':
        return pkl_string(r, 4);
    case 0x8d:
        return pkl_string(r, 8);
    case 'N':
        return pkl_int(r, PKL_NONE, 0);
    case 0x88: case 0x89:
        return pkl_int(r, PKL_BOOL, op == 0x88);
    case '(':
        return pkl_mark(r);
    case ')':
        return pkl_tuple(r, 0);
    case 0x85: case 0x86: case 0x87:
        n = op - 0x84;
        return pkl_has(r, n) ? pkl_tuple(r, n) : pkl_underflow(r);
    case 't': case 'e': case 'u':
        if (!pkl_unmark(r, &n)) {
            return pkl_bad(r, "no mark", "a mark before the values");
        }
        return op == 't' ? pkl_tuple(r, n) : pkl_extend(r, n, op == 'e' ? PKL_LIST : PKL_DICT);
    case ']':
        return pkl_new(r, PKL_LIST, &node);
    case '}':
        return pkl_new(r, PKL_DICT, &node);
    case 'a':
        return pkl_has(r, 2) ? pkl_extend(r, 1, PKL_LIST) : pkl_underflow(r);
    case 's':
        return pkl_has(r, 3) ? pkl_extend(r, 2, PKL_DICT) : pkl_underflow(r);
    case 0x94:
        return pkl_put(r, r->memo_next);
    case 'c':
        return pkl_global_op(r);
    case 0x93:
        return pkl_stack_global(r);
    case 'R':
        return pkl_reduce(r);
    case 'b':
        return pkl_build(r);
    case 'Q':
        return pkl_storage(r);
    default:
        return pkl_refuse(r, op);
    }
}

TL_FN tl_status pkl_run(pkl_reader *r)
{
    if (r->end == 0 || r->text[0] != 0x80) {
        return pkl_bad(r, "no pickle", "PROTO first");
    }
    for (;;) {
        unsigned op;
        tl_status status;
        r->op_at = r->at;
        if (r->at >= r->end) {
            return pkl_bad(r, "the end of the pickle", "STOP");
        }
        op = r->text[r->at++];
        if (op == '.') {
            break;
        }
        status = pkl_op(r, op);
        if (status != TL_OK) {
            return status;
        }
    }
    if (r->depth != 1 || r->mark_count != 0) {
        return pkl_bad(r, "STOP with more or less than one value", "one value");
    }
    r->out->root = r->stack[0];
    r->out->length = r->at;
    return TL_OK;
}

/* Reads one pickle from the start of `text`; data->length says where it ends. `name` and `base`
 * (its offset in the file) are for messages; `legacy` selects the form of storages in files before
 * torch 1.6. */
TL_FN tl_status pkl_parse(const char *text, size_t n, const char *name, uint64_t base, int legacy,
                          pkl_data *data, tl_error *err)
{
    pkl_reader r;
    tl_status status;
    memset(&r, 0, sizeof r);
    memset(data, 0, sizeof *data);
    data->text = text;
    r.out = data;
    r.text = (const unsigned char *)text;
    r.end = n;
    r.base = base;
    r.name = name;
    r.legacy = legacy;
    r.err = err;
    if (n > 0x7fffffff) {
        return pkl_bad(&r, "a pickle of 2 GiB or more", "a smaller one");
    }
    status = pkl_run(&r);
    tl_free(r.stack);
    tl_free(r.marks);
    tl_free(r.memo);
    if (status != TL_OK) {
        pkl_free(data);
    }
    return status;
}

#endif /* TL_PICKLE_H */
