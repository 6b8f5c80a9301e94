//! The image's recipe, as far as it can be judged without an engine: nothing builds or runs it here.

use super::helm::{file, read, rendered};

/// The recipe's instructions, each on one line, with their words.
fn instructions() -> Vec<(String, String)> {
    let text = read("Containerfile").replace("\\\n", " ");
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
    let split = lines.map(|line| line.split_once(' ').unwrap_or_else(|| panic!("{line} says nothing")));
    split.map(|(word, rest)| (word.to_owned(), rest.trim().to_owned())).collect()
}

fn of(word: &str) -> Vec<String> {
    instructions().into_iter().filter(|(it, _)| it == word).map(|(_, rest)| rest).collect()
}

#[test]
fn the_recipe_has_known_words_and_begins_with_an_image() {
    let known = ["FROM", "WORKDIR", "COPY", "RUN", "USER", "EXPOSE", "ENTRYPOINT"];
    let all = instructions();
    for (word, rest) in &all {
        assert!(known.contains(&word.as_str()), "{word} {rest}: what is it for?");
    }
    assert_eq!(all[0].0, "FROM");
}

#[test]
fn every_image_it_begins_with_is_named_in_full_and_pinned_by_tag() {
    let images = of("FROM");
    assert_eq!(images.len(), 2, "{images:?}");
    for image in &images {
        let name = image.split(' ').next().unwrap();
        let (name, tag) = name.rsplit_once(':').unwrap_or_else(|| panic!("{name} has no tag"));
        assert!(name.split('/').next().unwrap().contains('.'), "{name}: which registry?");
        assert!(tag != "latest" && !tag.is_empty(), "{image}");
    }
    let rust = format!("rust:{}-bookworm AS build", env!("CARGO_PKG_RUST_VERSION"));
    assert!(
        images[0].ends_with(&rust),
        "{}: Cargo.toml's rust-version is {}",
        images[0],
        env!("CARGO_PKG_RUST_VERSION")
    );
    // One Debian on both sides: a program that was linked against a newer C library does not start.
    assert!(images[1].contains("debian12"), "{}", images[1]);
}

#[test]
fn what_it_builds_is_locked_and_what_it_copies_is_what_was_built() {
    let runs = of("RUN");
    assert_eq!(runs, ["cargo build --release --locked --bin instance-access"]);
    assert!(file("Cargo.lock").is_file());
    let copies = of("COPY");
    assert_eq!(copies[0], ". .");
    assert_eq!(copies[1], "--from=build /src/target/release/instance-access /usr/bin/instance-access");
    assert_eq!(of("WORKDIR"), ["/src"]);
    assert!(read("Cargo.toml").contains("\nname = \"instance-access\"\n"));
    // The sources that are compiled in must reach the builder.
    let ignored = read(".dockerignore");
    for needed in ["src", "Cargo.toml", "Cargo.lock", "tests", "benches"] {
        assert!(ignored.lines().all(|line| line.trim_matches('/') != needed), ".dockerignore leaves {needed} out");
    }
}

#[test]
fn it_runs_as_the_user_and_at_the_port_that_the_chart_expects() {
    let objects = rendered(&[]);
    let pod = &super::helm::controller(&objects)["spec"]["template"]["spec"];
    let (user, group) = (&pod["securityContext"]["runAsUser"], &pod["securityContext"]["runAsGroup"]);
    assert_eq!(of("USER"), [format!("{user}:{group}")]);
    assert_eq!(of("EXPOSE"), [pod["containers"][0]["ports"][0]["containerPort"].to_string()]);
    // Without a shell there is only the form that needs none; the chart adds arguments and no command.
    assert_eq!(of("ENTRYPOINT"), ["[\"/usr/bin/instance-access\"]"]);
    assert!(pod["containers"][0]["command"].is_null());
}
