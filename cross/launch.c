/* The boards' python3: a program of this machine that starts QEMU with the board's own processor.
 *
 * A guest's execve goes to this machine's kernel, which cannot run ARM programs. This one it can, and since the
 * guest's interpreter is told this program's name as its own (-0), sys.executable names it: children of the product
 * start as on a board, without binfmt_misc. It stands in bin/ of a virtual environment, which Python finds by name too.
 * QEMU_PLUGIN and the like in the environment reach QEMU as they are. */
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

int main(int count, char **words) {
  char *first[] = {"/usr/bin/qemu", "-cpu", EMULATED_CPU, "-0", words[0], "/usr/bin/python3"};
  const int lead = sizeof first / sizeof *first;
  char **all = calloc(lead + count, sizeof *all); /* one short for words[0], one more for the end */
  if (all == NULL) return 127;
  for (int i = 0; i < lead; i++) all[i] = first[i];
  for (int i = 1; i < count; i++) all[lead + i - 1] = words[i];
  execv(all[0], all);
  perror("qemu");
  return 127;
}
