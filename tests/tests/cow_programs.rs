//! Programs that work on many files, in copy-on-write environments as natively: git with its worktrees and submodules, PostgreSQL,
//! a build. Each script runs natively and inside, on files of the host and on fresh ones, and prints the same.

use hurdle_tests::cow::{self, BOTH, as_natively};

/// git with an identity and a clock, and without the settings of whoever runs the test; so commits have the same names everywhere.
const GIT: &str = "export GIT_CONFIG_NOSYSTEM=1 GIT_CONFIG_GLOBAL=/dev/null GIT_TERMINAL_PROMPT=0
    export GIT_AUTHOR_NAME=Shepherd GIT_AUTHOR_EMAIL=shepherd@example.org GIT_AUTHOR_DATE='1700000000 +0000'
    export GIT_COMMITTER_NAME=Shepherd GIT_COMMITTER_EMAIL=shepherd@example.org GIT_COMMITTER_DATE='1700000000 +0000'
    git() { command git -c init.defaultBranch=main -c protocol.file.allow=always -c advice.detachedHead=false \"$@\"; }\n";

/// A repository with two branches, a submodule and a worktree that lies elsewhere, made on the host.
const REPOSITORY: &str = "git init -q lamb; echo baa > lamb/voice; git -C lamb add .; git -C lamb commit -q -m lamb
    git init -q flock; cd flock; for n in 1 2 3 4 5 6 7 8 9; do mkdir $n; for m in a b c; do echo $n$m > $n/$m; done; done
    git add .; git commit -q -m one; git submodule --quiet add ../lamb lamb; git commit -q -m lamb
    git checkout -q -b winter; git rm -q -r 3; echo snow > 5/a; git commit -q -am winter; git checkout -q main
    git worktree add -q ../pasture winter; git gc -q; echo more > 7/new; git add 7/new; git commit -q -m new; cd ..\n";

/// What a user does in it; all that git says about it. (Hard links to files of the host: `semantics-differences.txt`.)
const WORK: &str = "cd flock; git status --porcelain; git log --format='%h %s' --all
    echo changed > 1/a; rm 2/b; mv 4 four; echo new > 9/new; git status --porcelain | sort
    git add -A; git commit -q -m work; git diff --stat HEAD~1 | tail -1
    git checkout -q winter~0; ls; cat 5/a; git checkout -q main; git merge -q -m merged winter; git log -1 --format='%h %s'
    echo half > 6/a; git stash -q; cat 6/a; git stash pop -q; cat 6/a; git reset -q --hard
    git -C ../pasture status --porcelain; echo melt > ../pasture/5/a; git -C ../pasture commit -q -am melt
    git worktree add -q -b spring ../meadow; git worktree list | wc -l; ls -a ../meadow | wc -l
    git submodule update --init --quiet; cat lamb/voice; echo moo > lamb/voice; git -C lamb commit -q -am moo
    git add lamb; git commit -q -m 'the lamb moos'; git submodule status | cut -c1-8; git clone -q --no-hardlinks . ../copy; git -C ../copy log -1 --format=%h
    git worktree remove --force ../meadow; git branch -q -D spring; git repack -q -a -d; git prune; git fsck --full 2>&1 | sed /dangling/d
    git -C ../pasture log -1 --format='%h %s'; git log -1 --format='%h %s'; cd ..\n";

#[test]
fn git_in_repositories_of_the_host() {
    if cow::lacks("cow_programs::git_in_repositories_of_the_host", &["git"]) {
        return;
    }
    as_natively(&format!("{GIT}{REPOSITORY}"), &format!("{GIT}{WORK}"), BOTH);
}

#[test]
fn git_in_fresh_repositories() {
    if cow::lacks("cow_programs::git_in_fresh_repositories", &["git"]) {
        return;
    }
    as_natively(":", &format!("{GIT}{REPOSITORY}{WORK}"), BOTH);
}

/// PostgreSQL refuses root, so that it runs as another user where the script is root. It listens at a socket of its directory.
const POSTGRES: &str = "bin=$(ls -d /usr/lib/postgresql/*/bin | tail -1); as=
    if [ $(id -u) = 0 ]; then as='setpriv --reuid 65534 --regid 65534 --clear-groups --'; fi
    initialize() { mkdir -p data; if [ -n \"$as\" ]; then chown 65534:65534 data; fi
        $as $bin/initdb -D data -A trust -U shepherd --no-sync -E UTF8 --locale C >initdb.log 2>&1 || { cat initdb.log; exit 1; }; }
    server() { $as $bin/pg_ctl -D data -w -t 60 -l data/log -o '-c listen_addresses= -c unix_socket_directories=. -c fsync=on' \"$@\" >/dev/null \
        || { cat data/log; exit 1; }; }
    sql() { $bin/psql -h $PWD/data -U shepherd -d postgres -Atq -c \"$1\"; }\n";

/// Rows, an index, a crash in the middle of the work, and what is there after it.
const DATABASE: &str = "server start; sql 'create table flock (id int primary key, name text)'
    sql \"insert into flock select n, 'sheep ' || n from generate_series(1, 20000) n\"; sql 'select count(*), sum(id) from flock'
    sql 'create index on flock (name)'; sql 'vacuum flock'; sql checkpoint; sql \"update flock set name = 'black' where id % 10 = 0\"
    server -m immediate stop; server start; sql \"select count(*) from flock where name = 'black'\"
    sql 'drop table flock'; server stop; $bin/pg_controldata data | grep -c 'shut down'\n";

fn lacks_postgres(test: &str) -> bool {
    let missing = std::fs::read_dir("/usr/lib/postgresql").is_err();
    if missing {
        hurdle_tests::skip(&format!("cow_programs::{test}"), "PostgreSQL is not installed (cargo xtask install)");
    }
    missing
}

#[test]
fn postgres_in_a_fresh_database() {
    if !lacks_postgres("postgres_in_a_fresh_database") {
        as_natively(":", &format!("{POSTGRES}initialize; {DATABASE}"), BOTH);
    }
}

#[test]
fn postgres_in_a_database_of_the_host() {
    if !lacks_postgres("postgres_in_a_database_of_the_host") {
        // Inside, the host's user may be root. So the files are given to him who runs the server.
        let own = "if [ -n \"$as\" ]; then chown -R 65534:65534 data; fi\n";
        as_natively(&format!("{POSTGRES}initialize"), &format!("{POSTGRES}{own}{DATABASE}"), BOTH);
    }
}

/// A build on files of the host: times decide what is made again.
#[test]
fn make_builds_again_what_has_changed() {
    if cow::lacks("cow_programs::make_builds_again_what_has_changed", &["gcc", "make"]) {
        return;
    }
    let prepare = "for n in 1 2 3 4 5 6 7 8 9; do echo \"int f$n(void) { return $n; }\" > $n.c; done; echo 'int main(void) { return 0; }' > main.c
        printf 'all: main\\nmain: $(patsubst %%.c,%%.o,$(sort $(wildcard *.c)))\\n\\t$(CC) -o $@ $^\\n%%.o: %%.c\\n\\t$(CC) -c -o $@ $<\\n' > Makefile
        make -s -j2";
    let script = "make; touch 3.c; make; echo 'int f5(void) { return 50; }' > 5.c; make; ./main; rm 7.o; make -j2 2>&1 | wc -l
        ar rc lib.a *.o; ranlib lib.a; ar t lib.a | wc -l; strip main; ./main; make -B -s -j2; ./main; rm -f *.o; make -s; ls *.o | wc -l";
    as_natively(prepare, script, BOTH);
}

/// Archives, copies and comparisons that keep all there is to a file.
#[test]
fn archives_and_copies_keep_everything() {
    if cow::lacks("cow_programs::archives_and_copies_keep_everything", &["tar", "find"]) {
        return;
    }
    let prepare = "umask 022; mkdir -p old/deep/deeper; for n in 1 2 3; do echo $n > old/deep/$n; touch -d @170000000$n old/deep/$n; done
        ln old/deep/1 old/linked; ln -s deep/2 old/symbolic; touch -h -d @1700000000 old/symbolic; mkfifo old/pipe; chmod 640 old/deep/3; truncate -s 10M old/sparse; chmod 700 old/deep/deeper
        touch -d @1700000000 old/deep old/deep/deeper old/sparse old/pipe old";
    let show =
        "(cd %; find . ! -type d -printf '%p %M %s %T@ %n %l\\n' | sort; find . -type d -printf '%p %M %T@\\n' | sort)";
    let show = |directory: &str| show.replacen('%', directory, 1);
    let script = format!(
        "{old}; cp -a old copy; {copy}; tar -cf old.tar --sparse old; mkdir out; tar -xf old.tar -C out; {out}; diff -r --no-dereference old/deep out/old/deep && echo same
        rm -rf old/deep; tar -xf old.tar; {old}; mv copy moved; {moved}; find old -delete; ls; cp -a --sparse=always moved old; du -k old/sparse | cut -f1
        find moved -type f -exec md5sum {{}} + | sort | md5sum; chmod -R u=rwX,go= moved; {moved}; rm -r moved old out; ls",
        old = show("old"), copy = show("copy"), out = show("out/old"), moved = show("moved"),
    );
    as_natively(prepare, &script, BOTH);
}

/// Files that the overlay may read past the fs server, where it can: they are the host's until they are changed, by whatever
/// is done to them, and the host's stay what they are.
#[test]
fn large_files_of_the_system() {
    let large = "f=$(readlink -f \"$(command -v bash)\"); test $(stat -c %s $f) -gt 200000; md5sum < $f; stat -c '%s %a' $f
        tail -c 1000 $f | md5sum; cp $f copy; cmp $f copy; dd if=$f bs=7 skip=30000 count=3 2>/dev/null | md5sum
        python3 -c 'import mmap, sys, zlib; f = open(sys.argv[1]); print(zlib.crc32(mmap.mmap(f.fileno(), 0, prot=mmap.PROT_READ)))' $f
        ./copy -c 'echo it runs'; $f -c 'echo it runs'";
    as_natively("", large, BOTH);
    let cow = cow::Cow::watching(&["/usr/bin", "/usr/lib/os-release"], |_| {});
    let size: u64 = std::fs::metadata("/usr/bin/bash").expect("bash").len();
    let changed = "f=/usr/bin/bash; before=$(md5sum < $f); printf x >> $f; stat -c %s $f
        test \"$(head -c -1 $f | md5sum)\" = \"$before\"; tail -c 1 $f; echo; cp $f whole; truncate -s 1000 $f; cmp -n 1000 $f whole
        mv $f /usr/bin/other; ln /usr/bin/other $f; cmp $f /usr/bin/other";
    assert_eq!(cow.root(changed), format!("{}\nx\n", size + 1));
    cow.end();
}
