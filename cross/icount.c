/* Counts the guest's instructions: a TCG plugin for QEMU's user emulation.
 *
 * Debian ships no qemu-plugin.h, so what is used of its interface (version 1, of QEMU 4.2 and later) is declared
 * here; the functions are in the qemu binary itself. The count is written to the file that `out=` names whenever the
 * guest seeks in a descriptor that cannot be: lseek(-7777, mark), which costs it one failed call. An inference is the
 * difference of two marks, so start-up and everything else outside cancel.
 * The counter is added to by inline code, not atomically: count with one thread at work. */
#include <inttypes.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

typedef uint64_t qemu_plugin_id_t;
struct qemu_plugin_tb;
struct qemu_info_t;
enum qemu_plugin_op { QEMU_PLUGIN_INLINE_ADD_U64 };
typedef void (*tb_trans_cb)(qemu_plugin_id_t, struct qemu_plugin_tb *);
typedef void (*syscall_cb)(qemu_plugin_id_t, unsigned, int64_t, uint64_t, uint64_t, uint64_t, uint64_t, uint64_t,
                           uint64_t, uint64_t, uint64_t);
void qemu_plugin_register_vcpu_tb_trans_cb(qemu_plugin_id_t, tb_trans_cb);
void qemu_plugin_register_vcpu_tb_exec_inline(struct qemu_plugin_tb *, enum qemu_plugin_op, void *, uint64_t);
void qemu_plugin_register_vcpu_syscall_cb(qemu_plugin_id_t, syscall_cb);
size_t qemu_plugin_tb_n_insns(const struct qemu_plugin_tb *);

#define EXPORT __attribute__((visibility("default")))
EXPORT int qemu_plugin_version = 1;

static const int32_t MARK_DESCRIPTOR = -7777;
enum { LSEEK_ARM64 = 62, LSEEK_ARM = 19, LLSEEK_ARM = 140 };
static uint64_t count;
static FILE *out;

static void translated(qemu_plugin_id_t id, struct qemu_plugin_tb *block) {
  (void)id;
  qemu_plugin_register_vcpu_tb_exec_inline(block, QEMU_PLUGIN_INLINE_ADD_U64, &count, qemu_plugin_tb_n_insns(block));
}

static void called(qemu_plugin_id_t id, unsigned cpu, int64_t number, uint64_t descriptor, uint64_t second,
                   uint64_t third, uint64_t a4, uint64_t a5, uint64_t a6, uint64_t a7, uint64_t a8) {
  (void)id, (void)cpu, (void)a4, (void)a5, (void)a6, (void)a7, (void)a8;
  if ((int32_t)descriptor != MARK_DESCRIPTOR) return;
  if (number != LSEEK_ARM64 && number != LSEEK_ARM && number != LLSEEK_ARM) return;
  fprintf(out, "%" PRIu64 " %" PRIu64 "\n", number == LLSEEK_ARM ? third : second, count);
  fflush(out);
}

EXPORT int qemu_plugin_install(qemu_plugin_id_t id, const struct qemu_info_t *info, int words, char **word) {
  (void)info;
  for (int i = 0; i < words; i++)
    if (strncmp(word[i], "out=", 4) == 0) out = fopen(word[i] + 4, "w");
  if (out == NULL) {
    fprintf(stderr, "icount: out=FILE is missing, or cannot be written\n");
    return -1;
  }
  qemu_plugin_register_vcpu_tb_trans_cb(id, translated);
  qemu_plugin_register_vcpu_syscall_cb(id, called);
  return 0;
}
