#!/bin/sh
# Put Chromium on a Debian machine, where that can be done: the tests look at the report of
# `hotloop bench` in it.
set -u
for name in chromium chromium-browser google-chrome; do
    command -v "$name" >/dev/null && exit 0
done
if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    if ! apt-cache show chromium >/dev/null 2>&1; then
        apt-get update -qq
    fi
    export DEBIAN_FRONTEND=noninteractive
    install="apt-get install -y -qq --no-install-recommends chromium fonts-dejavu-core"
    # a list of packages that is out of date names files that are gone
    $install >/dev/null || { apt-get update -qq && $install >/dev/null; }
fi
exit 0
