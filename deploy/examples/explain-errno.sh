#!/usr/bin/env bash
# One refused call, and why: SNP_LAUNCH_UPDATE on a page that is not private answers EIO, and the reply says what was wrong.
#
#   VMM_SERVER=127.0.0.1:7788 ./explain-errno.sh
#
# Needs bash and grpcurl.
set -euo pipefail
server=${VMM_SERVER:-127.0.0.1:7788}

call() { # service/method json
  grpcurl -plaintext -d "$2" "$server" "vmmservice.v1.$1"
}

field() { # name
  sed -n "s/^ *\"$1\": *\"\{0,1\}\([^\",]*\)\"\{0,1\},\{0,1\}\$/\1/p" | head -n 1
}

host=$(call HostService/CreateHost '{"seed": "1"}' | sed -n 's/^ *"host": *"\(h[0-9]*\)".*/\1/p')
trap 'call HostService/DeleteHost "{\"host\": \"$host\"}" >/dev/null' EXIT
pid=$(call ProcessService/CreateProcess "{\"host\": \"$host\"}" | field pid)
me="\"host\": \"$host\", \"pid\": $pid"
kvm=$(call ProcessService/Open "{$me, \"path\": \"/dev/kvm\"}" | field value)
sev=$(call ProcessService/Open "{$me, \"path\": \"/dev/sev\"}" | field value)
vm=$(call KvmService/CreateVm "{$me, \"fd\": $kvm, \"vm_type\": \"VM_TYPE_SNP\"}" | field value)
call SevService/Init2 "{$me, \"fd\": $vm, \"sev_fd\": $sev, \"init\": {}}" >/dev/null
memfd=$(call VmService/CreateGuestMemfd "{$me, \"fd\": $vm, \"guest_memfd\": {\"size\": \"4096\"}}" | field value)
call VmService/SetUserMemoryRegion2 "{$me, \"fd\": $vm, \"region\": {\"flags\": 4, \"memory_size\": \"4096\", \"guest_memfd\": $memfd}}" >/dev/null
call SevService/SnpLaunchStart "{$me, \"fd\": $vm, \"sev_fd\": $sev, \"start\": {\"policy\": \"$((0x30000))\"}}" >/dev/null

# No KVM_SET_MEMORY_ATTRIBUTES before this:
call SevService/SnpLaunchUpdate "{$me, \"fd\": $vm, \"sev_fd\": $sev, \"update\": {\"gfn_start\": \"0\", \"len\": \"4096\", \"type\": \"SNP_PAGE_TYPE_ZERO\"}}"
