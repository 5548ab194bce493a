// Says with which rights it runs: the suite's image for `no_new_privs`, where it is setuid root.
#include <stdio.h>
#include <unistd.h>

int main(void) {
    printf("Effective uid: %d\n", (int)geteuid());
    return 0;
}
