/* What the PKCS #11 module itself can do: the limit for tests/benchmarks/rewrap.py.
 *
 *   rewrap MODULE LABEL < PIN, then lines "MODE SECONDS"; each answers "OPERATIONS NANOSECONDS".
 *
 * bare: C_UnwrapKey under the KEK, C_WrapKey under a session key, C_DestroyObject.
 * full: the same and the two HMACs of a release (over the record, over the release).
 * kek: what moving a record to another KEK costs: the HMACs of both records, the three calls of bare under the old
 *      and the new KEK, and once more back, to compare.
 * bare-copies, full-copies, kek-copies: the same with session copies of KEK and record-mac, as the worker makes them.
 * The templates are those of hsm_adapter/mechanisms.py.
 */
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

typedef unsigned long ULONG;
typedef unsigned char BYTE;
typedef struct { ULONG type; void *value; ULONG length; } ATTRIBUTE;
typedef struct { ULONG mechanism; void *parameter; ULONG length; } MECHANISM;

static void *module;

static void check(ULONG rv, const char *what)
{
    if (rv) {
        fprintf(stderr, "%s: CKR 0x%lx\n", what, rv);
        exit(1);
    }
}

#define CALL(name, ...) check(((ULONG (*)())dlsym(module, #name))(__VA_ARGS__), #name)
#define BOUND(name) ULONG (*name)() = (ULONG (*)())dlsym(module, #name)
#define COUNT(array) ((ULONG)(sizeof(array) / sizeof(array)[0]))

static BYTE yes = 1, no = 0;
static ULONG secret_key = 4, generic = 0x10, aes = 0x1f, bytes32 = 32, bytes64 = 64;

static ULONG session_on(const char *label, const char *pin)
{
    ULONG slots[16], count = 16, session;
    BYTE info[512]; /* CK_TOKEN_INFO begins with the 32-byte label */
    CALL(C_GetSlotList, (int)1, slots, &count);
    for (ULONG i = 0; i < count; i++) {
        CALL(C_GetTokenInfo, slots[i], info);
        if (strncmp((char *)info, label, strlen(label)) || (info[strlen(label)] != ' ' && strlen(label) < 32))
            continue;
        CALL(C_OpenSession, slots[i], 4UL, NULL, NULL, &session);
        CALL(C_Login, session, 1UL, pin, (ULONG)strlen(pin));
        return session;
    }
    fprintf(stderr, "no token %s\n", label);
    exit(1);
}

static ULONG find(ULONG session, char *label)
{
    ATTRIBUTE query[] = {{0x0, &secret_key, sizeof secret_key}, {0x3, label, strlen(label)}};
    ULONG key, found;
    CALL(C_FindObjectsInit, session, query, COUNT(query));
    CALL(C_FindObjects, session, &key, 1UL, &found);
    CALL(C_FindObjectsFinal, session);
    check(found != 1, label);
    return key;
}

static ULONG now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (ULONG)t.tv_sec * 1000000000UL + (ULONG)t.tv_nsec;
}

int main(int argc, char **argv)
{
    char pin[256], mode[16];
    double seconds;
    if (argc != 3 || !fgets(pin, sizeof pin, stdin))
        return 2;
    pin[strcspn(pin, "\r\n")] = 0;
    module = dlopen(argv[1], RTLD_NOW | RTLD_LOCAL);
    if (!module)
        return 2;
    CALL(C_Initialize, NULL);
    ULONG session = session_on(argv[2], pin);
    ULONG kek = find(session, "keypeer/kek/1"), mac_key = find(session, "keypeer/record-mac/1");

    ATTRIBUTE unwrapped[] = {{0x0, &secret_key, 8}, {0x1, &no, 1}, {0x2, &yes, 1}, {0x103, &yes, 1},
                             {0x100, &generic, 8}, {0x162, &yes, 1}};
    ATTRIBUTE vm_key[] = {{0x0, &secret_key, 8}, {0x1, &no, 1}, {0x2, &yes, 1}, {0x103, &yes, 1},
                          {0x100, &generic, 8}, {0x162, &yes, 1}, {0x161, &bytes64, 8}};
    ATTRIBUTE wrapper[] = {{0x0, &secret_key, 8}, {0x1, &no, 1}, {0x2, &yes, 1}, {0x103, &yes, 1},
                           {0x100, &aes, 8}, {0x106, &yes, 1}, {0x161, &bytes32, 8}};
    ATTRIBUTE signer[] = {{0x0, &secret_key, 8}, {0x1, &no, 1}, {0x2, &yes, 1}, {0x103, &yes, 1},
                          {0x100, &generic, 8}, {0x108, &yes, 1}, {0x161, &bytes32, 8}};
    MECHANISM key_wrap = {0x210A, NULL, 0}, aes_gen = {0x1080, NULL, 0}, generic_gen = {0x350, NULL, 0},
              hmac = {0x251, NULL, 0};
    ULONG key, session_key, session_mac;
    BYTE wrapped[128], out[128], mac[64], text[192] = {0};
    ULONG wrapped_length = sizeof wrapped, length;
    CALL(C_GenerateKey, session, &generic_gen, vm_key, COUNT(vm_key), &key);
    CALL(C_GenerateKey, session, &aes_gen, wrapper, COUNT(wrapper), &session_key);
    CALL(C_GenerateKey, session, &generic_gen, signer, COUNT(signer), &session_mac);
    CALL(C_WrapKey, session, &key_wrap, kek, key, wrapped, &wrapped_length);

    ATTRIBUTE session_object[] = {{0x1, &no, 1}};
    ULONG kek_copy, mac_copy, other_kek;
    ATTRIBUTE kek_like[] = {{0x0, &secret_key, 8}, {0x1, &no, 1}, {0x2, &yes, 1}, {0x103, &yes, 1},
                            {0x100, &aes, 8}, {0x106, &yes, 1}, {0x107, &yes, 1}, {0x161, &bytes32, 8}};
    CALL(C_GenerateKey, session, &aes_gen, kek_like, COUNT(kek_like), &other_kek);
    CALL(C_CopyObject, session, kek, session_object, 1UL, &kek_copy);
    CALL(C_CopyObject, session, mac_key, session_object, 1UL, &mac_copy);

    BOUND(C_UnwrapKey);
    BOUND(C_WrapKey);
    BOUND(C_DestroyObject);
    BOUND(C_SignInit);
    BOUND(C_Sign);
    while (scanf("%15s %lf", mode, &seconds) == 2) {
        ULONG start = now(), deadline = start + (ULONG)(seconds * 1e9), done = 0;
        int kek_mode = !strncmp(mode, "kek", 3), full = kek_mode || !strncmp(mode, "full", 4), copies = !!strchr(mode, '-');
        ULONG with_kek = copies ? kek_copy : kek, with_mac = copies ? mac_copy : mac_key;
        while (now() < deadline) {
            if (full) {
                check(C_SignInit(session, &hmac, with_mac), "C_SignInit");
                length = sizeof mac;
                check(C_Sign(session, text, 160UL, mac, &length), "C_Sign");
            }
            check(C_UnwrapKey(session, &key_wrap, with_kek, wrapped, wrapped_length, unwrapped, COUNT(unwrapped), &key),
                  "C_UnwrapKey");
            length = sizeof out;
            check(C_WrapKey(session, &key_wrap, kek_mode ? other_kek : session_key, key, out, &length), "C_WrapKey");
            check(C_DestroyObject(session, key), "C_DestroyObject");
            if (kek_mode) {
                check(C_UnwrapKey(session, &key_wrap, other_kek, out, length, unwrapped, COUNT(unwrapped), &key),
                      "C_UnwrapKey");
                length = sizeof out;
                check(C_WrapKey(session, &key_wrap, with_kek, key, out, &length), "C_WrapKey");
                check(C_DestroyObject(session, key), "C_DestroyObject");
                check(length != wrapped_length || memcmp(out, wrapped, length), "comparison");
            }
            if (full) {
                check(C_SignInit(session, &hmac, kek_mode ? with_mac : session_mac), "C_SignInit");
                length = sizeof mac;
                check(C_Sign(session, text, 160UL, mac, &length), "C_Sign");
            }
            done++;
        }
        printf("%lu %lu\n", done, now() - start);
        fflush(stdout);
    }
    return 0;
}
