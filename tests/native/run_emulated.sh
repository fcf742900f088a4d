#!/bin/sh
# Run the driver on an emulated Sapphire Rapids: AVX-512 and AMX on a machine that has neither. Slow, and for exactness only.
#   tests/native/run_emulated.sh BOCHS KERNEL [rounds] [seed] [build folder]      MODEL picks another of Bochs's CPUs
# BOCHS is what build_bochs.sh made; KERNEL a vmlinuz of Debian 13, which need not be installed (Debian 12's hangs in Bochs):
#   apt-get download linux-image-6.12.NUMBERS-cloud-amd64 && dpkg-deb -x linux-image-*.deb there      (there/boot/vmlinuz-*)
# It needs Debian's bochsbios vgabios isolinux syslinux-common xorriso cpio busybox g++ cmake.
set -eu
here=$(cd "$(dirname "$0")/../.." && pwd)
bochs=$(realpath "$1")
kernel=$2
rounds=${3:-30}
seed=${4:-1}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
build=$(realpath -m "${5:-$work/build}")
cmake -S "$here" -B "$build" -DCMAKE_BUILD_TYPE=Release -DBITWRIGHT_DRIVER=ON >/dev/null
cmake --build "$build" >/dev/null

# A bootable disc whose Linux runs the driver, says how it ended, and resets the machine.
mkdir -p "$work/root" "$work/disc"
busybox=$(command -v busybox)
{ echo "$build/bitwright_driver" && echo "$busybox" && ldd "$build/bitwright_driver" "$busybox" 2>/dev/null | grep -o '/[^ :]* ('; } |
    sed 's/ ($//' | sort -u | xargs cp -L --parents -t "$work/root"
cat >"$work/root/init" <<END
#!$busybox sh
$build/bitwright_driver $rounds $seed 2>&1
echo "status \$?"
$busybox sleep 1
$busybox reboot -f
END
chmod +x "$work/root/init"
(cd "$work/root" && find . | cpio --quiet -o -H newc | gzip -1 >"$work/disc/initrd")
cp "$kernel" "$work/disc/vmlinuz"
cp /usr/lib/ISOLINUX/isolinux.bin /usr/lib/syslinux/modules/bios/ldlinux.c32 "$work/disc"
# acpi=off: the BIOS's part of switching it on loses the mode of the CPU. reboot=t: the reset that ends Bochs.
echo 'default vmlinuz initrd=initrd console=ttyS0 quiet panic=-1 reboot=t acpi=off mitigations=off' >"$work/disc/isolinux.cfg"
xorriso -as mkisofs -quiet -o "$work/disc.iso" -b isolinux.bin -c boot.cat -no-emul-boot -boot-load-size 4 -boot-info-table \
    "$work/disc" 2>"$work/xorriso"

cat >"$work/bochsrc" <<END
display_library: nogui
romimage: file=/usr/share/bochs/BIOS-bochs-latest
vgaromimage: file=/usr/share/vgabios/vgabios.bin
cpu: model=${MODEL:-sapphire_rapids}, ips=50000000, reset_on_triple_fault=0
clock: sync=none
memory: guest=512, host=512
ata0-master: type=cdrom, path=$work/disc.iso, status=inserted
boot: cdrom
com1: enabled=1, mode=file, dev=$work/serial
log: $work/log
panic: action=fatal
error: action=report
END
"$bochs" -q -f "$work/bochsrc" >"$work/bochs" 2>&1 || true # the reset counts as an error
tr -d '\r' <"$work/serial" | grep -v '^\[' || tail -n 20 "$work/bochs" "$work/log" >&2
status=$(tr -d '\r' <"$work/serial" | sed -n 's/^status //p')
exit "${status:-1}"
