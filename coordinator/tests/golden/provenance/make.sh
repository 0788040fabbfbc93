#!/bin/sh
# Makes the signatures of this folder with OpenSSL and GnuPG: sh make.sh FOLDER [SECONDS]
# Those kept here were made with OpenSSL 3.0.19 and GnuPG 2.2.40; their private keys, in FOLDER/made, were not kept.
# SECONDS since 1970 is the moment that the certificates' dates are around, 2026-11-22T12:00:00Z unless said otherwise.
set -eu
now=${2:-1795348800}
# day OFFSET FORMAT: a day before or after that moment.
day() { date -u -d "@$((now + $1 * 86400))" "+$2"; }
out=$(mkdir -p "$1" && cd "$1" && pwd)
mkdir -p "$out/made"
cd "$out/made"
quiet() { "$@" >log 2>&1 || { cat log >&2; exit 1; }; }

head -c 4096 /dev/zero | openssl enc -aes-128-ctr -K 000102030405060708090a0b0c0d0e0f -iv 00 2>/dev/null >"$out/image.bin"
image=$out/image.bin
printf 'another file\n' >other.bin

# --- bare RSA
quiet openssl genpkey -algorithm RSA -pkeyopt rsa_keygen_bits:2048 -out rsa.key
quiet openssl genpkey -algorithm RSA -pkeyopt rsa_keygen_bits:2048 -out rsa-stranger.key
quiet openssl genpkey -algorithm RSA -pkeyopt rsa_keygen_bits:1024 -out rsa-1024.key
quiet openssl genpkey -algorithm RSA -pkeyopt rsa_keygen_bits:2048 -pkeyopt rsa_keygen_pubexp:3 -out rsa-e3.key
for key in rsa rsa-1024 rsa-e3; do openssl pkey -in $key.key -pubout -out "$out/$key.pub"; done
openssl rsa -in rsa.key -RSAPublicKey_out -out "$out/rsa-pkcs1.pub" 2>/dev/null
openssl dgst -sha256 -sign rsa.key -out "$out/rsa.sig" "$image"
openssl dgst -sha256 -sign rsa-stranger.key -out "$out/rsa-stranger.sig" "$image"
openssl dgst -sha256 -sign rsa.key -out "$out/rsa-other.sig" other.bin
openssl dgst -sha1 -sign rsa.key -out "$out/rsa-sha1.sig" "$image"
openssl dgst -md5 -sign rsa.key -out "$out/rsa-md5.sig" "$image"
openssl dgst -sha256 -sigopt rsa_padding_mode:pss -sign rsa.key -out "$out/rsa-pss.sig" "$image"
# Bleichenbacher 2006: short padding, the right digest, and then whatever makes the block a cube. No private key.
openssl pkey -pubin -in "$out/rsa-e3.pub" -noout >/dev/null
python3 - "$image" "$out/rsa-e3-forged.sig" <<'P'
import hashlib, sys
info = bytes.fromhex("3031300d060960864801650304020105000420") + hashlib.sha256(open(sys.argv[1], "rb").read()).digest()
head = b"\x00\x01" + b"\xff" * 8 + b"\x00" + info
target = int.from_bytes(head + b"\xff" * (256 - len(head)), "big")
low, high = 0, 1 << 700
while low < high:
    middle = (low + high + 1) // 2
    low, high = (middle, high) if middle ** 3 <= target else (low, middle - 1)
assert (low ** 3).to_bytes(256, "big").startswith(head)
open(sys.argv[2], "wb").write(low.to_bytes(256, "big"))
P
# The same block as somebody with the key would make it: trailing garbage after the digest.
{ printf '\000\001\377\377\377\377\377\377\377\377\000\060\061\060\015\006\011\140\206\110\001\145\003\004\002\001\005\000\004\040'
  openssl dgst -sha256 -binary "$image"; head -c 194 /dev/zero; } >block
openssl pkeyutl -decrypt -inkey rsa.key -pkeyopt rsa_padding_mode:none -in block -out "$out/rsa-garbage.sig"

# --- CMS
cat >ca.cnf <<'C'
[ca]
default_ca = any
[any]
new_certs_dir = .
database = index
serial = serial
default_md = sha256
policy = names
unique_subject = no
crlnumber = crlnumber
crl_extensions = crl
default_crl_days = 4000
[names]
organizationName = optional
commonName = supplied
[root]
basicConstraints = critical, CA:true
keyUsage = critical, keyCertSign, cRLSign
subjectKeyIdentifier = hash
[sub]
subjectKeyIdentifier = hash
authorityKeyIdentifier = keyid
basicConstraints = critical, CA:true, pathlen:0
keyUsage = critical, keyCertSign, cRLSign
[sign]
subjectKeyIdentifier = hash
authorityKeyIdentifier = keyid
keyUsage = critical, digitalSignature
extendedKeyUsage = codeSigning
[tls]
keyUsage = critical, digitalSignature
extendedKeyUsage = serverAuth
[plain]
keyUsage = critical, digitalSignature
[encrypt]
keyUsage = critical, keyEncipherment
extendedKeyUsage = codeSigning
[crl]
authorityKeyIdentifier = keyid
[req]
distinguished_name = dn
[dn]
C
: >index; echo 01 >serial; echo 01 >crlnumber
p256() { quiet openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -out $1.key; }
rsa() { quiet openssl genpkey -algorithm RSA -pkeyopt rsa_keygen_bits:$2 -out $1.key; }
# cert NAME SUBJECT EXTENSIONS ISSUER FROM UNTIL
cert() {
  quiet openssl req -new -config ca.cnf -key $1.key -subj "$2" -out $1.csr
  if [ "$4" = self ]; then by="-selfsign -keyfile $1.key"; else by="-cert $4.crt -keyfile $4.key"; fi
  quiet openssl ca -config ca.cnf -batch -notext $by -extensions $3 -startdate $5 -enddate $6 -in $1.csr -out $1.crt
}
asn1=%Y%m%d%H%M%SZ
from=$(day -320 $asn1) until=$(day 3400 $asn1)
p256 ca; cert ca "/O=Acme/CN=Acme Root" root self $from $until
p256 stranger-ca; cert stranger-ca "/O=Acme/CN=Acme Root" root self $from $until
p256 old-ca; cert old-ca "/O=Acme/CN=Acme Old Root" root self $(day -2500 $asn1) $(day -260 $asn1)
rsa sub 2048; cert sub "/O=Acme/CN=Acme Signing CA" sub ca $from $until
rsa leaf-rsa 2048; cert leaf-rsa "/O=Acme/CN=Acme Firmware" sign sub $from $until
p256 leaf-p256; cert leaf-p256 "/O=Acme/CN=Acme Firmware P-256" sign ca $from $until
quiet openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-384 -out leaf-p384.key
cert leaf-p384 "/O=Acme/CN=Acme Firmware P-384" sign ca $from $until
p256 expired; cert expired "/O=Acme/CN=Acme Expired" sign ca $from $(day -170 $asn1)
p256 future; cert future "/O=Acme/CN=Acme Future" sign ca $(day 1200 $asn1) $until
p256 tls; cert tls "/O=Acme/CN=Acme Web" tls ca $from $until
p256 plain; cert plain "/O=Acme/CN=Acme Plain" plain ca $from $until
p256 encrypt; cert encrypt "/O=Acme/CN=Acme Mail" encrypt ca $from $until
p256 stranger; cert stranger "/O=Acme/CN=Acme Firmware" sign stranger-ca $from $until
p256 by-old; cert by-old "/O=Acme/CN=Acme Firmware Old" sign old-ca $from $until
rsa weak 1024; cert weak "/O=Acme/CN=Acme Weak" sign ca $from $until
p256 revoked; cert revoked "/O=Acme/CN=Acme Revoked" sign ca $from $until
quiet openssl ca -config ca.cnf -cert ca.crt -keyfile ca.key -revoke revoked.crt
quiet openssl ca -config ca.cnf -cert ca.crt -keyfile ca.key -gencrl -crldays 3000 -out "$out/ca.crl"
cp ca.crt "$out/ca.pem"; cp stranger-ca.crt "$out/stranger-ca.pem"; cp old-ca.crt "$out/old-ca.pem"
cms() { name=$1 who=$2; shift 2; openssl cms -sign -binary -in "$image" -signer $who.crt -inkey $who.key -md sha256 "$@" -out "$out/$name" 2>/dev/null; }
cms rsa.cms.der leaf-rsa -outform DER -certfile sub.crt
cms rsa.cms.pem leaf-rsa -outform PEM -certfile sub.crt
cms rsa-keyid.cms.der leaf-rsa -outform DER -certfile sub.crt -keyid
cms rsa-no-chain.cms.der leaf-rsa -outform DER
cms rsa-pss.cms.der leaf-rsa -outform DER -certfile sub.crt -keyopt rsa_padding_mode:pss
for who in leaf-p256 leaf-p384 expired future tls plain encrypt stranger by-old weak revoked; do cms $who.cms.der $who -outform DER; done
cms p384-sha384.cms.der leaf-p384 -outform DER -md sha384
cms rsa-sha512.cms.der leaf-rsa -outform DER -certfile sub.crt -md sha512
cms sha1.cms.der leaf-p256 -outform DER -md sha1
cms no-attributes.cms.der leaf-p256 -outform DER -noattr
cms no-certificate.cms.der leaf-p256 -outform DER -nocerts
cms attached.cms.der leaf-p256 -outform DER -nodetach
openssl cms -sign -binary -in other.bin -signer leaf-p256.crt -inkey leaf-p256.key -md sha256 -outform DER -out "$out/other.cms.der"

# --- OpenPGP
export GNUPGHOME="$out/made/gnupg"
mkdir -p -m 700 "$GNUPGHOME"
gpg() { quiet command gpg --batch --yes --pinentry-mode loopback --passphrase '' --faked-system-time ${when:-$(day -293 %Y%m%dT000000)}! "$@"; }
gpg --quick-gen-key 'Acme RSA <rsa@acme.example>' rsa3072 sign never
gpg --quick-gen-key 'Acme Ed25519 <ed25519@acme.example>' ed25519 sign never
gpg --quick-gen-key 'Acme P-256 <p256@acme.example>' nistp256 sign never
gpg --quick-gen-key 'Acme Weak <weak@acme.example>' rsa1024 sign never
gpg --quick-gen-key 'Acme Stranger <stranger@acme.example>' ed25519 sign never
gpg --quick-gen-key 'Acme Expired <expired@acme.example>' ed25519 sign "$(day -170 %Y-%m-%d)"
gpg --quick-gen-key 'Acme Revoked <revoked@acme.example>' ed25519 sign never
gpg --quick-gen-key 'Acme Subkey <subkey@acme.example>' ed25519 cert never
print=$(command gpg --batch --with-colons --list-keys subkey@acme.example 2>/dev/null | awk -F: '/^fpr/{print $10; exit}')
gpg --quick-add-key "$print" ed25519 sign never
for who in rsa ed25519 p256 weak stranger expired revoked subkey; do
  gpg --local-user $who@acme.example --digest-algo SHA512 --detach-sign -o "$out/pgp-$who.sig" "$image"
done
gpg --local-user rsa@acme.example --armor --detach-sign -o "$out/pgp-rsa.asc" "$image"
gpg --local-user ed25519@acme.example --digest-algo SHA512 --armor --detach-sign -o "$out/pgp-ed25519.asc" "$image"
gpg --local-user rsa@acme.example --digest-algo SHA1 --detach-sign -o "$out/pgp-sha1.sig" "$image"
gpg --local-user rsa@acme.example --textmode --detach-sign -o "$out/pgp-text.sig" "$image"
gpg --local-user ed25519@acme.example --detach-sign -o "$out/pgp-other.sig" other.bin
gpg --local-user ed25519@acme.example --default-sig-expire "$(day -170 %Y-%m-%d)" --detach-sign -o "$out/pgp-short.sig" "$image"
(when=$(day 1200 %Y%m%dT000000); gpg --local-user ed25519@acme.example --detach-sign -o "$out/pgp-future.sig" "$image")
sed 's/^:---/---/' "$GNUPGHOME/openpgp-revocs.d/$(command gpg --batch --with-colons --list-keys revoked@acme.example 2>/dev/null | awk -F: '/^fpr/{print $10; exit}').rev" >revocation
gpg --import revocation
gpg --armor --export-options export-minimal --export -o "$out/pgp.asc" rsa@acme.example ed25519@acme.example p256@acme.example weak@acme.example expired@acme.example revoked@acme.example subkey@acme.example
gpg --export -o "$out/pgp-rsa.gpg" rsa@acme.example
gpgconf --kill gpg-agent
