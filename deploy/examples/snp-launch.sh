#!/usr/bin/env bash
# Builds a small SEV-SNP guest with nothing but grpcurl calls, ioctl by ioctl, and checks its launch digest.
#
#   VMM_SERVER=127.0.0.1:7788 ./snp-launch.sh
#
# Needs bash and grpcurl. Metadata "vmm-errno-as: status" turns any errno into an error status, so "set -e" stops at the first refused call.
set -euo pipefail
server=${VMM_SERVER:-127.0.0.1:7788}

# What an EPYC machine measures for this guest: 16 pages of 0x5a at 0xffff0000, two ZERO pages at 0x800000, a SECRETS page at 0x802000, and one vCPU in
# KVM's reset state.
expected=3365a64f4b7d49326940cb25a8d7a8a34748f69067c23a6c5e829ba7b66f1d23f57e622a65986d5f3db08c4633c58728

call() { # service/method json
  grpcurl -plaintext -H 'vmm-errno-as: status' -d "$2" "$server" "vmmservice.v1.$1"
}

field() { # name: the first field of that name in the JSON on standard input
  sed -n "s/^ *\"$1\": *\"\{0,1\}\([^\",]*\)\"\{0,1\},\{0,1\}\$/\1/p" | head -n 1
}

host=$(call HostService/CreateHost '{"profile": "K72", "seed": "1"}' | sed -n 's/^ *"host": *"\(h[0-9]*\)".*/\1/p')
trap 'call HostService/DeleteHost "{\"host\": \"$host\"}" >/dev/null' EXIT
pid=$(call ProcessService/CreateProcess "{\"host\": \"$host\"}" | field pid)
me="\"host\": \"$host\", \"pid\": $pid"

kvm=$(call ProcessService/Open "{$me, \"path\": \"/dev/kvm\"}" | field value)
sev=$(call ProcessService/Open "{$me, \"path\": \"/dev/sev\"}" | field value)
vm=$(call KvmService/CreateVm "{$me, \"fd\": $kvm, \"vm_type\": \"VM_TYPE_SNP\"}" | field value)
call SevService/Init2 "{$me, \"fd\": $vm, \"sev_fd\": $sev, \"init\": {}}" >/dev/null

# Private memory: a guest_memfd, a slot that binds it, and the attribute PRIVATE (8). Once for RAM, once for the firmware below 4 GiB.
add_memory() { # slot gpa size
  local memfd
  memfd=$(call VmService/CreateGuestMemfd "{$me, \"fd\": $vm, \"guest_memfd\": {\"size\": \"$3\"}}" | field value)
  call VmService/SetUserMemoryRegion2 \
    "{$me, \"fd\": $vm, \"region\": {\"slot\": $1, \"flags\": 4, \"guest_phys_addr\": \"$2\", \"memory_size\": \"$3\", \"guest_memfd\": $memfd}}" >/dev/null
  call VmService/SetMemoryAttributes "{$me, \"fd\": $vm, \"attributes\": {\"address\": \"$2\", \"size\": \"$3\", \"attributes\": \"8\"}}" >/dev/null
}
add_memory 0 0 $((16 << 20))
add_memory 1 $((0xffff0000)) $((16 * 4096))

call VmService/CreateVcpu "{$me, \"fd\": $vm, \"vcpu_id\": \"0\"}" >/dev/null

call SevService/SnpLaunchStart "{$me, \"fd\": $vm, \"sev_fd\": $sev, \"start\": {\"policy\": \"$((0x30000))\"}}" >/dev/null
update() { # gpa pages type content-json
  call SevService/SnpLaunchUpdate \
    "{$me, \"fd\": $vm, \"sev_fd\": $sev, \"update\": {\"gfn_start\": \"$(($1 / 4096))\", \"len\": \"$(($2 * 4096))\", \"type\": \"SNP_PAGE_TYPE_$3\"}$4}" >/dev/null
}
update $((0xffff0000)) 16 NORMAL ", \"content\": {\"pattern\": {\"bytes\": \"Wg==\", \"length\": \"$((16 * 4096))\"}}"
update $((0x800000)) 2 ZERO ""
update $((0x802000)) 1 SECRETS ", \"content\": {\"pattern\": {\"bytes\": \"AA==\", \"length\": \"4096\"}}"
digest=$(call SevService/SnpLaunchFinish "{$me, \"fd\": $vm, \"sev_fd\": $sev, \"finish\": {}}" | field launchDigest)

echo "launch digest $digest"
if [ "$digest" != "$expected" ]; then
  echo "expected      $expected" >&2
  exit 1
fi
echo OK
