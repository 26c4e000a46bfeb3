#!/usr/bin/env bash
# Runs a command on an emulated board: enter.sh ROOT OVERLAY LAUNCHER PACKAGES [bind SRC DST | tmpfs DST SIZE | set NAME VALUE]... -- ARGUMENTS...
#
# Everything happens in a mount namespace that ends with the command. ROOT (from `python -m cross setup`) is read-only,
# as on a board whose root is; what must be written to is mounted. ARGUMENTS go to the board's python3.
set -euo pipefail
root=$1 overlay=$2 launcher=$3 packages=$4
shift 4
mount --bind "$root" "$root"
mount --bind "$packages" "$root/opt/edgert/lib/python3.11/site-packages"
mount --bind "$launcher" "$root/opt/edgert/bin/python3"
mount --rbind /proc "$root/proc"
for file in cpuinfo meminfo; do mount --bind "$overlay/proc/$file" "$root/proc/$file"; done
mount --rbind /dev "$root/dev"
mount --bind "$overlay/sys" "$root/sys"
mount --bind "$overlay" "$root/srv/board"
mount -t tmpfs -o size=256m,mode=1777 tmpfs "$root/tmp"
environment=(HOME=/tmp LC_ALL=C.UTF-8 PATH=/opt/edgert/bin:/usr/bin:/bin EDGERT_CACHE=/srv/cache PYTHONDONTWRITEBYTECODE=1)
while [ "$1" != -- ]; do
  case $1 in
    bind) mount --bind "$2" "$root$3"; shift 3 ;;
    tmpfs) mount -t tmpfs -o "size=$3" tmpfs "$root$2"; shift 3 ;;
    set) environment+=("$2=$3"); shift 3 ;;
    *) echo "enter.sh: what is '$1'?" >&2; exit 2 ;;
  esac
done
shift
mount -o remount,bind,ro "$root"
exec env -i "${environment[@]}" "$(command -v chroot)" "$root" /opt/edgert/bin/python3 "$@"
