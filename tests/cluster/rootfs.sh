# shellcheck shell=bash
# Folders that become images: programs of this machine with what they load.

# with_libraries FOLDER PROGRAM…: copies the shared libraries that the programs load.
with_libraries() {
  local folder=$1 library
  shift
  for library in $(ldd "$@" 2>/dev/null | grep -oE '/[^ ]+\.so[^ :]*' | sort -u); do
    mkdir -p "$folder$(dirname "$library")"
    cp -L "$library" "$folder$library"
  done
}

busybox_into() {
  mkdir -p "$1/bin" "$1/tmp" "$1/etc"
  cp "$(command -v busybox)" "$1/bin/busybox"
  local applet
  for applet in $(busybox --list); do [ -e "$1/bin/$applet" ] || ln -s busybox "$1/bin/$applet"; done
}
