#!/usr/bin/env bash
# Builds kube-apiserver and kube-controller-manager 1.20.2 from the source package of Debian 12, with Debian's own Go 1.19,
# and takes etcd and kubectl from Debian as they are: into DIRECTORY, once. About five minutes on two idle cores. No root, nothing is installed, and
# only the Debian archive is asked. It is Kubernetes's own code with two repairs for the newer Go, below; not an upstream build.
# usage: build_api_server.sh DIRECTORY
set -euo pipefail

directory=$(realpath -m "$1")
programs=(kube-apiserver kube-controller-manager)
packaged=(etcd kubectl)
version=v1.20.2
keyring=/usr/share/keyrings/debian-archive-keyring.gpg

complete() { for program in "${packaged[@]}" "${programs[@]}"; do [ -x "$directory/$program" ] || return 1; done; }
if complete; then exit 0; fi
for tool in apt-get dpkg tar flock openssl; do
    command -v "$tool" >/dev/null || { echo "$tool is not here: the API server is built from Debian's packages" >&2; exit 1; }
done
[ -r "$keyring" ] || { echo "$keyring is not here: apt-get install debian-archive-keyring" >&2; exit 1; }

mkdir -p "$directory"
# One build at a time; whoever waited finds it done.
exec 9>"$directory/.lock"
flock 9
if complete; then exit 0; fi

work=$directory/.work
rm -rf "$work"
trap 'chmod -R u+w "$work" 2>/dev/null; rm -rf "$work"' EXIT
mkdir -p "$work"/{lists/partial,cache/archives/partial,parts,debs,root,go}

# The mirror this machine uses, in whichever of the two formats it is written down.
configured_mirror() {
    local sources=/etc/apt/sources.list
    if [ -r $sources.d/debian.sources ]; then sed -n 's/^URIs: *\([^ ]*debian\)\/\?$/\1/p' $sources.d/debian.sources; fi
    if [ -r $sources ]; then sed -n 's/^deb \(\[[^]]*\] \)\?\([^ ]*debian\)\/\? .*/\2/p' $sources; fi
}
mirror=$(configured_mirror | sed -n 1p)
mirror=${mirror:-http://deb.debian.org/debian}
printf '%s [signed-by=%s] %s bookworm main\n' deb "$keyring" "$mirror" deb-src "$keyring" "$mirror" \
    >"$work/sources.list"
cat >"$work/apt.conf" <<CONF
Dir::State::Lists "$work/lists";
Dir::Cache "$work/cache";
Dir::Etc::SourceList "$work/sources.list";
Dir::Etc::SourceParts "$work/parts";
APT::Sandbox::User "$(id -un)";
Acquire::Retries "3";
Acquire::http::Timeout "20";
Acquire::https::Timeout "20";
CONF
export APT_CONFIG=$work/apt.conf

echo "fetching the sources of Kubernetes $version, and Go, from $mirror"
apt-get -qq update
cd "$work/debs"
apt-get -qq download golang-1.19-go golang-1.19-src golang-github-modern-go-reflect2-dev \
    etcd-server kubernetes-client
apt-get -qq source --download-only kubernetes
for package in *.deb; do dpkg -x "$package" "$work/root"; done
tree=$work/go/src/k8s.io/kubernetes
mkdir -p "$tree"
tar xzf kubernetes_*.orig.tar.gz --strip-components=1 -C "$tree"

# reflect2 1.0.1 crashes with Go 1.18 and later where it walks a map; Debian packages the repaired 1.0.2.
vendored=$tree/vendor/github.com/modern-go/reflect2
rm -f "$vendored"/*.go "$vendored"/*.s
cp "$work"/root/usr/share/gocode/src/github.com/modern-go/reflect2/*.{go,s} "$vendored/"

# The validator compares reflect.Values to find null, and with this Go an empty string compares equal to it. Null is nil.
for file in vendor/k8s.io/kube-openapi/pkg/validation/validate/type.go vendor/github.com/go-openapi/validate/type.go; do
    sed -i 's/if data == nil || reflect.DeepEqual(.*) {$/if data == nil {/' "$tree/$file"
    if grep -q 'data == nil ||' "$tree/$file"; then echo "the repair does not fit $file" >&2; exit 1; fi
done

export GOROOT=$work/root/usr/lib/go-1.19 GOPATH=$work/go GOCACHE=$work/gocache GOTMPDIR=$work
export GO111MODULE=off CGO_ENABLED=0 GOPROXY=off GOFLAGS=
export PATH=$GOROOT/bin:$PATH
cd "$tree"

echo "generating the API server's OpenAPI definitions"
go build -o "$work/openapi-gen" ./vendor/k8s.io/kube-openapi/cmd/openapi-gen
packages=$(
    find pkg plugin cmd staging/src/k8s.io -name '*.go' -not -path '*/testdata/*' \
        -not -path 'staging/src/k8s.io/code-generator/*' -not -path 'staging/src/k8s.io/sample-apiserver/*' -print0 |
        xargs -0 grep -l '^// +k8s:openapi-gen=' | xargs -n1 dirname | LC_ALL=C sort -u |
        sed -e 's#^staging/src/#k8s.io/kubernetes/vendor/#' -e '/^k8s.io/!s#^#k8s.io/kubernetes/#' | paste -sd,
)
"$work/openapi-gen" --v 0 --logtostderr -i "$packages" -p k8s.io/kubernetes/pkg/generated/openapi \
    -O zz_generated.openapi -h vendor/k8s.io/code-generator/hack/boilerplate.go.txt -r "$work/violations.txt"

flags="-s -w"
for package in client-go/pkg/version component-base/version; do
    prefix="k8s.io/kubernetes/vendor/k8s.io/$package"
    flags+=" -X $prefix.gitVersion=$version -X $prefix.gitMajor=1 -X $prefix.gitMinor=20 -X $prefix.gitTreeState=clean"
done
for program in "${programs[@]}"; do
    # One that an earlier run had built before it was cut off.
    if [ -x "$directory/$program" ]; then continue; fi
    echo "building $program"
    # Providerless: without the clouds, whose SDKs are a good part of the code.
    go build -tags providerless -ldflags "$flags" -o "$work/$program" "./cmd/$program"
    mv "$work/$program" "$directory/$program"
done
for program in "${packaged[@]}"; do install -m 755 "$work/root/usr/bin/$program" "$directory/$program"; done
