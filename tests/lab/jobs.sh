#!/usr/bin/env bash
#
# How many builds may run at once here: 2, or 1 below 12 GB of free memory, which a compiler of Go's and aws-sdk-ec2 may want
# together. A container's bound counts as the machine's does (Linux: proc_meminfo(5), cgroup v2's memory.max and
# memory.current).
set -euo pipefail

free=$(awk '/^MemAvailable:/ { printf "%.0f", $2 * 1024 }' /proc/meminfo)
group=/sys/fs/cgroup$(sed -n 's/^0:://p' /proc/self/cgroup)
for folder in "$group" /sys/fs/cgroup; do
  max=$(cat "$folder/memory.max" 2>/dev/null || echo max)
  current=$(cat "$folder/memory.current" 2>/dev/null || echo 0)
  if [[ $max != max ]] && ((max - current < free)); then
    free=$((max - current))
  fi
done
((free < 12000000000)) && echo 1 || echo 2
