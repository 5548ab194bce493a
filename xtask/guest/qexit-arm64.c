// Ends QEMU: no device takes a status there, so the machine is turned off, and the status is what the guest has said before.
#include <sys/reboot.h>
#include <unistd.h>

int main(void) {
    sync();
    reboot(RB_POWER_OFF);
    return 2;
}
