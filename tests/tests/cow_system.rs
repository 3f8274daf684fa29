//! What a system's administrator does, as root inside of `--fs cow`: packages of Debian, settings and users in /etc, pip, npm,
//! `make install`. All of it works, all of it is gone afterwards, and the host's files are as they were.

use std::path::{Path, PathBuf};
use std::time::Duration;

use hurdle_tests::cow::{self, PACKAGES, ROOT};
use hurdle_tests::{Cow, finish, skip};

/// A package that was downloaded, and is not installed on the host.
fn package(test: &str, name: &str) -> Option<PathBuf> {
    let entries = std::fs::read_dir(PACKAGES).into_iter().flatten().flatten().map(|entry| entry.path());
    let named = |path: &PathBuf| {
        let file = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        file.strip_prefix(name).is_some_and(|rest| rest.starts_with('_')) && file.ends_with(".deb")
    };
    let found = entries.into_iter().find(named);
    if found.is_none() {
        skip(&format!("cow_system::{test}"), &format!("no package {name} in {PACKAGES} (cargo xtask install)"));
    }
    found
}

/// Debian starts services that it installs, unless this says no.
const NO_SERVICES: &str = "printf '#!/bin/sh\\nexit 101\\n' > /usr/sbin/policy-rc.d; chmod 755 /usr/sbin/policy-rc.d
    export DEBIAN_FRONTEND=noninteractive LC_ALL=C.UTF-8\n";

#[test]
fn apt_get_installs_and_purges_packages() {
    let test = "apt_get_installs_and_purges_packages";
    let (Some(hello), Some(uuid)) = (package(test, "hello"), package(test, "uuid-runtime")) else { return };
    let cow = Cow::watching_system();
    let (hello, uuid) = (hello.display(), uuid.display());
    // One with a program alone; one with a user, settings and scripts.
    let install = format!(
        "{NO_SERVICES}
        apt-get install -q -y --no-install-recommends {hello} {uuid} >apt.log 2>&1 || {{ cat apt.log; exit 1; }}
        hello; uuidgen --namespace @dns --name flock --sha1; getent passwd uuidd | cut -d: -f6
        stat -c '%U %G %a' /etc/init.d/uuidd; dpkg --verify hello uuid-runtime; dpkg-query -Wf '${{Status}}\\n' hello"
    );
    let expected =
        "Hello, world!\ndac9f319-32da-56e6-9bcc-b3c75145479f\n/run/uuidd\nroot root 755\ninstall ok installed\n";
    assert_eq!(cow.root(&install), expected);
    let gone = cow.sh(ROOT, "command -v hello || getent passwd uuidd || dpkg-query -W hello 2>/dev/null || echo gone");
    assert_eq!(gone.success().stdout, "gone\n");
    let purge = format!(
        "{install}\napt-get purge -q -y uuid-runtime hello >apt.log 2>&1 || {{ cat apt.log; exit 1; }}
        ls /etc/init.d/uuidd /usr/bin/hello 2>/dev/null || echo purged"
    );
    assert!(cow.root(&purge).ends_with("\npurged\n"));
    cow.end();
}

/// A package of the test's own, with all that a package may have.
const OWN_PACKAGE: &str = r#"
mkdir -p p/DEBIAN p/etc/flock p/usr/bin p/usr/lib/flock p/var/lib/flock
printf 'Package: flock\nVersion: 1.0\nArchitecture: all\nMaintainer: Shepherd <shepherd@example.org>\nDescription: sheep\n' > p/DEBIAN/control
echo /etc/flock/flock.conf > p/DEBIAN/conffiles
echo colour=white > p/etc/flock/flock.conf
printf '#!/bin/sh\necho baa\n' > p/usr/lib/flock/baa; chmod 755 p/usr/lib/flock/baa
ln -s ../lib/flock/baa p/usr/bin/baa; ln p/usr/lib/flock/baa p/usr/lib/flock/again
cat > p/DEBIAN/postinst <<'END'
#!/bin/sh
set -e
getent group flock >/dev/null || groupadd --system flock
getent passwd flock >/dev/null || useradd --system --gid flock --home-dir /var/lib/flock --no-create-home flock
chown -R flock:flock /var/lib/flock; chmod 2750 /var/lib/flock
update-alternatives --install /usr/bin/sheep sheep /usr/lib/flock/baa 10
END
cat > p/DEBIAN/prerm <<'END'
#!/bin/sh
set -e
update-alternatives --remove sheep /usr/lib/flock/baa
END
chmod 755 p/DEBIAN/postinst p/DEBIAN/prerm
dpkg-deb --build --root-owner-group p flock.deb >/dev/null
"#;

#[test]
fn dpkg_installs_upgrades_and_removes_a_package_with_everything() {
    if cow::lacks("cow_system::dpkg_installs_upgrades_and_removes_a_package_with_everything", &["dpkg-deb"]) {
        return;
    }
    let cow = Cow::watching_system();
    let script = format!(
        "{OWN_PACKAGE}
        dpkg -i flock.deb >/dev/null; baa; sheep; stat -c '%U:%G %a' /var/lib/flock
        setpriv --reuid flock --regid flock --clear-groups sh -c 'cd /var/lib/flock && id -un && echo lamb > lamb && cat lamb'
        echo colour=black > /etc/flock/flock.conf
        sed -i 's/^Version: 1.0/Version: 1.1/' p/DEBIAN/control; echo colour=grey > p/etc/flock/flock.conf
        dpkg-deb --build --root-owner-group p flock.deb >/dev/null
        dpkg -i --force-confold flock.deb >/dev/null; cat /etc/flock/flock.conf; dpkg-query -Wf '${{Version}}\\n' flock
        dpkg -r flock >/dev/null; test ! -e /usr/bin/sheep; test ! -e /usr/lib/flock; cat /etc/flock/flock.conf"
    );
    let expected = "baa\nbaa\nflock:flock 2750\nflock\nlamb\ncolour=black\n1.1\ncolour=black\n";
    assert_eq!(cow.root(&script), expected);
    cow.end();
}

#[test]
fn settings_and_users_are_changed() {
    let cow = Cow::watching_system();
    let names = "getent passwd ewe | cut -d: -f1,6,7; id -Gn ewe";
    let script = format!(
        "echo '192.0.2.7 pasture' >> /etc/hosts; getent hosts pasture | tr -s ' '
        sed -i 's/^root:[^:]*:/root:changed:/' /etc/passwd; grep -c '^root:changed:' /etc/passwd
        rm /etc/hostname; echo meadow > /etc/hostname; cat /etc/hostname
        mv /etc/profile /etc/profile.old; cp /etc/profile.old /etc/profile; chmod 600 /etc/profile; stat -c %a /etc/profile
        useradd --create-home --shell /bin/sh --groups games ewe; {names}
        ls -A ~ewe | grep -c . >/dev/null; stat -c '%U %G' ~ewe
        echo 'ewe:secret' | chpasswd; grep -c '^ewe:[$]' /etc/shadow; stat -c %a /etc/shadow
        su ewe -c 'id -un; cd; echo lamb > lamb; stat -c %U lamb; cat /etc/shadow 2>/dev/null || echo closed'
        usermod -l ram ewe; getent passwd ram | cut -d: -f1; userdel -r ram 2>/dev/null; getent passwd ram || echo gone
        groupadd herd; gpasswd -a games herd >/dev/null; getent group herd | cut -d: -f1,4"
    );
    let expected = "192.0.2.7 pasture\n1\nmeadow\n600\newe:/home/ewe:/bin/sh\newe games\newe ewe\n1\n640\newe\newe\nclosed\nram\ngone\nherd:games\n";
    assert_eq!(cow.root(&script), expected);
    assert_eq!(
        cow.root("getent passwd ewe ram || getent group herd || ls -d /home/ewe /etc/profile.old 2>/dev/null || :"),
        ""
    );
    cow.end();
}

/// What of the host its user may not read stays so. Where programs need it, it is made up: no hash of a password comes in.
#[test]
fn secrets_of_the_host_stay_secret() {
    let cow = Cow::watching_system();
    let shadow =
        "wc -l < /etc/shadow; cut -d: -f2 /etc/shadow | sort -u; stat -c '%U %a' /etc/shadow; wc -l < /etc/passwd";
    let seen = cow.root(shadow);
    let lines: Vec<&str> = seen.lines().collect();
    let hashes = &lines[1..lines.len() - 2];
    assert_eq!(lines[lines.len() - 2], "root 640", "{seen}");
    if nix::unistd::geteuid().is_root() {
        let own = std::fs::read_to_string("/etc/shadow").expect("root may");
        assert_eq!(cow.root("cat /etc/shadow"), own);
    } else {
        assert!(hashes.iter().all(|hash| ["*", "!", "!*", "!!"].contains(hash)), "{seen}");
        assert_eq!(lines.first(), lines.last(), "one line for each user: {seen}");
        for options in [cow::SAME, ROOT] {
            let done = cow.sh(
                options,
                "ls /root/ 2>/dev/null | wc -l; cat /proc/1/root/etc/shadow 2>/dev/null | grep -c '[$]' || :",
            );
            assert_eq!(done.success().stdout, "0\n0\n", "{options:?}");
        }
        let done =
            cow.sh(cow::SAME, "cat /etc/shadow 2>/dev/null || echo closed; touch /etc/new 2>/dev/null || echo refused");
        assert_eq!(done.success().stdout, "closed\nrefused\n");
    }
    cow.end();
}

/// A wheel is an archive of files and what describes them.
const WHEEL: &str = r#"
import zipfile
with zipfile.ZipFile("flock-1.0-py3-none-any.whl", "w") as wheel:
    wheel.writestr("flock/__init__.py", "def main():\n    print('baa')\n")
    wheel.writestr("flock-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: flock\nVersion: 1.0\n")
    wheel.writestr("flock-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
    wheel.writestr("flock-1.0.dist-info/entry_points.txt", "[console_scripts]\nbaa = flock:main\n")
    wheel.writestr("flock-1.0.dist-info/RECORD", "flock/__init__.py,,\nflock-1.0.dist-info/RECORD,,\n")
"#;

#[test]
fn pip_installs_a_wheel() {
    if cow::lacks("cow_system::pip_installs_a_wheel", &["python3", "pip3"]) {
        return;
    }
    let cow = Cow::watching_system();
    let script = format!(
        "cat > wheel.py <<'END'\n{WHEEL}\nEND\n/usr/bin/python3 wheel.py
        export PIP_NO_INDEX=1 PIP_BREAK_SYSTEM_PACKAGES=1 PIP_ROOT_USER_ACTION=ignore PIP_NO_CACHE_DIR=1
        /usr/bin/python3 -m pip install -q ./flock-1.0-py3-none-any.whl
        cd /; baa; command -v baa; /usr/bin/python3 -c 'import flock; print(flock.__file__)' | cut -d/ -f1-4
        /usr/bin/python3 -m pip uninstall -q -y flock; baa 2>/dev/null || echo gone"
    );
    assert_eq!(cow.root(&script), "baa\n/usr/local/bin/baa\n/usr/local/lib\ngone\n");
    assert_eq!(cow.root("test -e /usr/local/bin/baa || echo none"), "none\n");
    cow.end();
}

#[test]
fn npm_installs_a_tarball_for_everybody() {
    if cow::lacks("cow_system::npm_installs_a_tarball_for_everybody", &["node", "npm"]) {
        return;
    }
    let cow = Cow::watching_system();
    let script = r#"export HOME=$PWD npm_config_offline=true npm_config_audit=false npm_config_fund=false npm_config_update_notifier=false
        mkdir -p package/lib app; echo 'module.exports = () => "baa"' > package/index.js
        printf '#!/usr/bin/env node\nconsole.log(require("./index.js")())\n' > package/cli.js
        printf '{"name": "flock-sheep", "version": "1.0.0", "bin": {"baa": "cli.js"}, "scripts": {"postinstall": "echo done > installed"}}' > package/package.json
        tar -czf flock-sheep.tgz package; rm -r package
        npm install --silent -g --prefix /usr/local ./flock-sheep.tgz
        (cd / && baa && command -v baa && cat /usr/local/lib/node_modules/flock-sheep/installed)
        cd app; npm init -y >/dev/null; npm install --silent ../flock-sheep.tgz; ls node_modules; npx baa
        npm uninstall --silent -g --prefix /usr/local flock-sheep; test ! -e /usr/local/bin/baa"#;
    assert_eq!(cow.root(script), "baa\n/usr/local/bin/baa\ndone\nflock-sheep\nbaa\n");
    cow.end();
}

/// A small project of C with a library, its header, a manual page and a program.
fn c_project(directory: &Path) {
    let write = |name: &str, text: &str| std::fs::write(directory.join(name), text).expect("own directory");
    write("flock.h", "const char *flock_baa(void);\n");
    write("flock.c", "#include \"flock.h\"\nconst char *flock_baa(void) { return \"baa\"; }\n");
    write("main.c", "#include <flock.h>\n#include <stdio.h>\nint main(void) { puts(flock_baa()); return 0; }\n");
    write("baa.1", ".TH baa 1\n");
    let makefile = "all: baa\nlibflock.so: flock.c flock.h\n\t$(CC) -shared -fPIC -o $@ flock.c\n\
        baa: main.c libflock.so\n\t$(CC) -I. -o $@ main.c -L. -lflock\n\
        install: all\n\tinstall -D -m 0755 baa $(DESTDIR)/usr/local/bin/baa\n\
        \tinstall -D -m 0644 libflock.so $(DESTDIR)/usr/local/lib/libflock.so\n\
        \tinstall -D -m 0644 flock.h $(DESTDIR)/usr/local/include/flock.h\n\
        \tinstall -D -m 0644 baa.1 $(DESTDIR)/usr/local/share/man/man1/baa.1\n\tldconfig\n\
        uninstall:\n\trm -f /usr/local/bin/baa /usr/local/lib/libflock.so /usr/local/include/flock.h\n\tldconfig\n";
    write("Makefile", makefile);
}

#[test]
fn make_install_to_usr_local() {
    if cow::lacks("cow_system::make_install_to_usr_local", &["gcc", "make"]) {
        return;
    }
    let paths: Vec<&str> = cow::SYSTEM.into_iter().chain(["/var/cache/ldconfig"]).collect();
    let cow = Cow::watching(&paths, c_project);
    let script = "make -s install; cd /; baa; ldconfig -p | grep -c libflock; stat -c %a /usr/local/include/flock.h
        cd - >/dev/null; make -s clean uninstall 2>/dev/null || make -s uninstall; test -e /usr/local/bin/baa || echo gone";
    assert_eq!(cow.root(script), "baa\n1\n644\ngone\n");
    cow.end();
}

#[test]
fn a_walk_finds_what_the_host_has() {
    // What Python compiles for itself may come meanwhile.
    let walk = "find /usr -name __pycache__ -prune -o -printf '%p %y %s %m %T@ %l\\n' 2>/dev/null | sort | sha256sum
        find /usr/bin /usr/lib/*-linux-gnu /usr/share/doc -type f -size -4096k -readable -exec cat {} + | sha256sum";
    let cow = Cow::watching_system();
    let native = finish(std::process::Command::new("/bin/sh").args(["-c", walk]), Duration::from_secs(120));
    assert_eq!(cow.sh(cow::SAME, walk).success().stdout, native.success().stdout);
    cow.end();
}

/// Under `--auth same` permissions are the user's own: he changes what is his, and is told that he may not change the rest.
#[test]
fn who_is_no_root_inside_changes_what_is_his_own() {
    if nix::unistd::geteuid().is_root() {
        return skip(
            "cow_system::who_is_no_root_inside_changes_what_is_his_own",
            "run by root, who may change everything",
        );
    }
    let cow = Cow::watching_system();
    let script = "echo mine > own; cat own; touch /etc/new 2>/dev/null || echo refused; rm /etc/hostname 2>/dev/null || echo refused
        mkdir -p /tmp/below && echo there > /tmp/below/file && cat /tmp/below/file; id -u";
    let own = nix::unistd::geteuid();
    assert_eq!(cow.sh(cow::SAME, script).success().stdout, format!("mine\nrefused\nrefused\nthere\n{own}\n"));
    let done = finish(&mut cow.command(cow::SAME, "/usr/sbin/useradd"), Duration::from_secs(30));
    assert!(!done.status.success(), "{done}");
    cow.end();
}
