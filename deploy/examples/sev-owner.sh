#!/usr/bin/env bash
# Launches a SEV guest for an owner who trusts only the platform's key: a session, a measurement that the owner compares, a secret for that measurement. All of it with grpcurl; the
# owner's cryptography is PspService's, so that nothing else is needed to follow it.
#
#   VMM_SERVER=127.0.0.1:7788 ./sev-owner.sh
#
# Needs bash, grpcurl and coreutils.
set -euo pipefail
server=${VMM_SERVER:-127.0.0.1:7788}

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
vm=$(call KvmService/CreateVm "{$me, \"fd\": $kvm, \"vm_type\": \"VM_TYPE_SEV\"}" | field value)
call SevService/Init2 "{$me, \"fd\": $vm, \"sev_fd\": $sev, \"init\": {}}" >/dev/null
ram=$(call ProcessService/Mmap "{$me, \"length\": \"$((16 * 4096))\", \"prot\": 3, \"flags\": $((0x22))}" | field addr)
call VmService/SetUserMemoryRegion2 "{$me, \"fd\": $vm, \"region\": {\"memory_size\": \"$((16 * 4096))\", \"userspace_addr\": \"$ram\"}}" >/dev/null

# The owner takes the platform's Diffie-Hellman key (and would verify its chain), and makes a session that only this platform opens. Real keys are random.
bytes() { # text of 16 or 48 bytes, as JSON has bytes
  printf %s "$1" | base64 -w 0
}
tek=$(bytes 'encrypts secrets'); tik=$(bytes 'signs the launch')
policy=1
pdh=$(call SevPlatformService/SevPdhCertExport "{$me, \"fd\": $sev}" | field pdhCert)
session=$(call PspService/MakeSession "{
  \"exchange\": {\"pdh_cert\": \"$pdh\", \"private_key\": \"$(bytes 'a private key of P-384 that should be random ...')\"},
  \"nonce\": \"$(bytes 'used only once .')\", \"iv\": \"$(bytes 'and this one too')\", \"tek\": \"$tek\", \"tik\": \"$tik\", \"policy\": $policy}")

# The VMM passes it on, and launches four pages.
call SevLegacyService/SevLaunchStart \
  "{$me, \"fd\": $vm, \"sev_fd\": $sev, \"policy\": $policy, \"dh_cert\": \"$(field dhCert <<<"$session")\", \"session\": \"$(field session <<<"$session")\"}" >/dev/null
call ProcessService/WriteMemory "{$me, \"addr\": \"$ram\", \"content\": {\"pattern\": {\"bytes\": \"Wg==\", \"length\": \"$((4 * 4096))\"}}}" >/dev/null
call SevLegacyService/SevLaunchUpdateData "{$me, \"fd\": $vm, \"sev_fd\": $sev, \"uaddr\": \"$ram\", \"len\": $((4 * 4096))}" >/dev/null
measured=$(call SevLegacyService/SevLaunchMeasure "{$me, \"fd\": $vm, \"sev_fd\": $sev, \"len\": 48}")

# The owner knows what should have been launched, and so what the platform has to answer.
digest=$(head -c $((4 * 4096)) /dev/zero | tr '\0' Z | sha256sum | cut -c 1-64 | sed 's/../\\x&/g')
firmware=$(call SevPlatformService/SevPlatformStatus "{$me, \"fd\": $sev}")
expected=$(call PspService/MeasureLaunch "{\"tik\": \"$tik\", \"policy\": $policy, \"launch_digest\": \"$(printf '%b' "$digest" | base64 -w 0)\",
  \"api_major\": $(field apiMajor <<<"$firmware"), \"api_minor\": $(field apiMinor <<<"$firmware"), \"build\": $(field build <<<"$firmware"),
  \"mnonce\": \"$(field mnonce <<<"$measured")\"}" | field measure)
echo "measured $(field measure <<<"$measured")"
echo "expected $expected"
[ "$(field measure <<<"$measured")" = "$expected" ]

# Only a guest with this measurement is told the secret.
packet=$(call PspService/SealSecret \
  "{\"tek\": \"$tek\", \"tik\": \"$tik\", \"iv\": \"$(bytes 'a third iv, fine')\", \"data\": \"$(bytes 'the key of disks')\", \"measure\": \"$expected\"}")
call SevLegacyService/SevLaunchSecret "{$me, \"fd\": $vm, \"sev_fd\": $sev, \"header\": \"$(field header <<<"$packet")\", \"body\": \"$(field ciphertext <<<"$packet")\",
  \"guest_uaddr\": \"$((ram + 8 * 4096))\", \"guest_len\": 16}" >/dev/null
call SevLegacyService/SevLaunchFinish "{$me, \"fd\": $vm, \"sev_fd\": $sev}" >/dev/null
echo OK
