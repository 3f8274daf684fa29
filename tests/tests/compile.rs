//! gcc and make: a small C project, built in parallel, rebuilt, tested, installed.

use hurdle_tests::{Scene, in_worlds};

in_worlds!(project: native, share, local_root, isolated);

const MAKEFILE: &str = "\
OBJECTS := $(patsubst %.c,%.o,$(sort $(wildcard part*.c))) main.o
CFLAGS := -O1 -Wall -Werror

sum: $(OBJECTS)
\t$(CC) -o $@ $^

%.o: %.c parts.h
\t$(CC) $(CFLAGS) -c -o $@ $<

check: sum
\ttest \"$$(./sum)\" = 780

install: sum
\tinstall -D -m 0755 sum $(DESTDIR)/usr/bin/sum-of-parts
";

fn project(scene: &Scene) {
    if scene.lacks(&["gcc", "make"]) {
        return;
    }
    let names: Vec<usize> = (0..40).collect();
    for name in &names {
        scene.write(
            &format!("part{name}.c"),
            &format!("#include \"parts.h\"\nint part{name}(void) {{ return {name}; }}\n"),
        );
    }
    let declared: String = names.iter().map(|name| format!("int part{name}(void);\n")).collect();
    let added: String = names.iter().map(|name| format!(" + part{name}()")).collect();
    scene.write("parts.h", &declared);
    let main = format!(
        "#include <stdio.h>\n#include \"parts.h\"\nint main(void) {{ printf(\"%d\\n\", 0{added}); return 0; }}\n"
    );
    scene.write("main.c", &main);
    scene.write("Makefile", MAKEFILE);

    let built = scene.run("make", &["-j4", "check"]).success();
    assert_eq!(built.stdout.matches(" -c ").count(), 41, "{built}");
    // Times of files are right: nothing to do, then one file to do.
    let again = scene.run("make", &["-j4", "sum"]).success();
    assert!(again.stdout.contains("up to date"), "{again}");
    scene.write("part7.c", "#include \"parts.h\"\nint part7(void) { return 8; }\n");
    let changed = scene.run("make", &["-j4", "sum"]).success();
    assert_eq!(changed.stdout.matches(" -c ").count(), 1, "{changed}");
    assert_eq!(scene.run("./sum", &[]).success().stdout, "781\n");
    assert_eq!(scene.run("make", &["check"]).code(), 2);

    scene.run("make", &["install", "DESTDIR=out"]).success();
    assert_eq!(scene.run("out/usr/bin/sum-of-parts", &[]).success().stdout, "781\n");
    let broken = scene.write("broken.c", "int main(void) { return undeclared; }\n");
    let refused = scene.run("gcc", &[broken.to_str().expect("a plain path")]);
    assert!(refused.code() == 1 && refused.stderr.contains("undeclared"), "{refused}");
}
