//! The image: its recipe, as far as it can be judged without an engine, and what `release/image.sh` packs, which needs none.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

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
fn it_is_built_by_one_version_of_rust_and_begins_with_nothing() {
    let images = of("FROM");
    let [build, last] = &images[..] else { panic!("two stages, not {images:?}") };
    let name = build.strip_suffix(" AS build").unwrap_or_else(|| panic!("{build}: which stage is it?"));
    // A release has its digest behind the tag.
    let (name, digest) = name.split_once('@').unwrap_or((name, "sha256:"));
    let digest = digest.strip_prefix("sha256:").unwrap_or_else(|| panic!("{digest} is no digest"));
    assert!([0, 64].contains(&digest.len()) && digest.bytes().all(|it| it.is_ascii_hexdigit()), "{digest}");
    let (name, tag) = name.rsplit_once(':').unwrap_or_else(|| panic!("{name} has no tag"));
    assert!(name.split('/').next().unwrap().contains('.'), "{name}: which registry?");
    // Debian of the oldest that is looked after: the program holds the C library of the one that it is built on.
    let version = tag.strip_suffix("-bookworm").unwrap_or_else(|| panic!("{tag} is no Debian 12"));
    assert_eq!(version.split('.').count(), 3, "{version}: another patch release makes another program");
    // No shell, no package manager, no loader.
    assert_eq!(last, "scratch");
}

#[test]
fn all_that_it_runs_is_the_script_and_all_that_it_has_is_what_the_script_laid() {
    assert_eq!(of("RUN"), [r#"["release/build.sh", "/image"]"#]);
    assert_eq!(of("COPY"), [". .", "--from=build /image/ /"]);
    assert_eq!(of("WORKDIR"), ["/src"]);
    let script = read("release/build.sh");
    for needed in ["--release --locked --offline", "target-feature=+crt-static", "cargo fetch --locked"] {
        assert!(script.contains(needed), "release/build.sh builds without {needed}");
    }
    // The sources that are compiled in must reach the builder.
    let ignored = read(".dockerignore");
    for needed in ["src", "Cargo.toml", "Cargo.lock", "Containerfile", "tests", "benches", "release"] {
        assert!(file(needed).exists());
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

/// What a `tar` program lists or prints.
fn tar(arguments: &[&str]) -> Vec<u8> {
    let done = Command::new("tar").args(arguments).output().unwrap();
    assert!(done.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&done.stderr));
    done.stdout
}

fn sha256(path: &Path) -> String {
    let done = Command::new("sha256sum").arg(path).output().unwrap();
    String::from_utf8(done.stdout).unwrap().split(' ').next().unwrap().to_owned()
}

/// Packs folders, each `ARCHITECTURE=FOLDER`; returns the image's digest, as it is told.
#[track_caller]
fn pack(archive: &Path, folders: &[String], environment: &[(&str, &str)]) -> String {
    let mut script = Command::new(file("release/image.sh"));
    let done = script.arg(archive).args(folders).envs(environment.iter().copied()).output().unwrap();
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    let said = String::from_utf8(done.stdout).unwrap();
    let digest = said.strip_prefix(archive.to_str().unwrap()).unwrap_or_else(|| panic!("{said:?} names no archive"));
    digest.trim().to_owned()
}

/// An OCI image layout, unpacked.
struct Layout(PathBuf);

impl Layout {
    fn of(archive: &Path) -> Self {
        let layout = archive.with_extension("layout");
        fs::create_dir(&layout).unwrap();
        tar(&["--extract", "--file", archive.to_str().unwrap(), "--directory", layout.to_str().unwrap()]);
        Self(layout)
    }

    fn parsed(path: &Path) -> Value {
        serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
    }

    /// A blob by its descriptor, whose digest and size must be true.
    fn blob(&self, descriptor: &Value) -> PathBuf {
        let digest = descriptor["digest"].as_str().unwrap().strip_prefix("sha256:").unwrap();
        let path = self.0.join("blobs/sha256").join(digest);
        assert_eq!(sha256(&path), digest);
        assert_eq!(path.metadata().unwrap().len(), descriptor["size"].as_u64().unwrap());
        path
    }

    /// The one image, of this digest: the descriptor of its manifest, or of the list of them. Who copies an archive, and is
    /// given no name, takes no layout that has two.
    fn image(&self, digest: &str) -> Value {
        assert_eq!(Self::parsed(&self.0.join("oci-layout"))["imageLayoutVersion"], "1.0.0");
        let index = Self::parsed(&self.0.join("index.json"));
        let [image] = &index["manifests"].as_array().unwrap()[..] else { panic!("one image: {index}") };
        assert_eq!(image["digest"], digest);
        // What a registry is sent says itself what it is.
        assert_eq!(image["mediaType"], Self::parsed(&self.blob(image))["mediaType"]);
        image.clone()
    }
}

const LIST: &str = "application/vnd.oci.image.index.v1+json";
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

/// A folder as `release/build.sh` lays it, with something else for the program.
fn laid(below: &Path, program: &str) -> String {
    for (name, text, mode) in
        [("usr/bin/instance-access", program, 0o755), ("etc/ssl/certs/ca-certificates.crt", "authorities\n", 0o644)]
    {
        let path = below.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
    }
    below.to_str().unwrap().to_owned()
}

#[test]
fn what_is_packed_is_the_image_of_the_recipe_for_each_architecture() {
    let dir = tempfile::tempdir().unwrap();
    let folders = [("amd64", "one"), ("arm64", "two")]
        .map(|(name, program)| format!("{name}={}", laid(&dir.path().join(name), program)));
    let archive = dir.path().join("image.tar");
    let digest = pack(&archive, &folders, &[("SOURCE_DATE_EPOCH", "1700000000")]);

    let layout = Layout::of(&archive);
    let image = layout.image(&digest);
    assert_eq!(image["mediaType"], LIST);
    let list = Layout::parsed(&layout.blob(&image));
    let mut programs = BTreeMap::new();
    for descriptor in list["manifests"].as_array().unwrap() {
        assert_eq!(descriptor["mediaType"], MANIFEST);
        let manifest = Layout::parsed(&layout.blob(descriptor));
        let config = Layout::parsed(&layout.blob(&manifest["config"]));
        let architecture = config["architecture"].as_str().unwrap().to_owned();
        assert_eq!(descriptor["platform"], serde_json::json!({"architecture": architecture, "os": "linux"}));
        assert_eq!(config["created"], "2023-11-14T22:13:20Z");
        assert_eq!(config["config"]["User"], of("USER")[0].as_str());
        assert_eq!(config["config"]["Entrypoint"].to_string(), of("ENTRYPOINT")[0]);
        assert_eq!(config["config"]["ExposedPorts"], serde_json::json!({format!("{}/tcp", of("EXPOSE")[0]): {}}));

        let [layer] = &manifest["layers"].as_array().unwrap()[..] else { panic!("one layer: {manifest}") };
        let packed = layout.blob(layer);
        let listed = String::from_utf8(tar(&["-tvzf", packed.to_str().unwrap(), "--numeric-owner"])).unwrap();
        let files: Vec<Vec<&str>> = listed.lines().map(|line| line.split_whitespace().collect()).collect();
        for entry in &files {
            assert_eq!(entry[1], "0/0", "{listed}");
            assert!(!entry[0][1..].contains('s') && &entry[0][8..9] != "w", "set-uid, or writable to all: {listed}");
        }
        let mut names: Vec<_> =
            files.iter().filter(|it| it[0].starts_with('-')).map(|it| *it.last().unwrap()).collect();
        names.sort_unstable();
        assert_eq!(names, ["etc/ssl/certs/ca-certificates.crt", "usr/bin/instance-access"]);
        let program = tar(&["-xzOf", packed.to_str().unwrap(), "usr/bin/instance-access"]);
        programs.insert(architecture, String::from_utf8(program).unwrap());

        let unpacked = dir.path().join("unpacked");
        let gzip = Command::new("gzip").arg("-dc").arg(&packed).output().unwrap();
        fs::write(&unpacked, gzip.stdout).unwrap();
        assert_eq!(config["rootfs"]["diff_ids"][0], format!("sha256:{}", sha256(&unpacked)));
    }
    assert_eq!(programs, BTreeMap::from([("amd64", "one"), ("arm64", "two")].map(|(a, b)| (a.into(), b.into()))));
}

#[test]
fn an_image_of_one_architecture_is_its_manifest() {
    let dir = tempfile::tempdir().unwrap();
    let folder = laid(&dir.path().join("folder"), "program");
    let archive = dir.path().join("image.tar");
    let digest = pack(&archive, &[format!("arm64={folder}")], &[]);
    let layout = Layout::of(&archive);
    let image = layout.image(&digest);
    assert_eq!(image["mediaType"], MANIFEST);
    let manifest = Layout::parsed(&layout.blob(&image));
    assert_eq!(Layout::parsed(&layout.blob(&manifest["config"]))["architecture"], "arm64");
}

#[test]
fn the_same_program_is_packed_into_the_same_bytes_by_whomever_and_whenever() {
    let dir = tempfile::tempdir().unwrap();
    let first = laid(&dir.path().join("first"), "program");
    let second = laid(&dir.path().join("second"), "program");
    // Other times, other modes, another language and zone.
    let old = fs::File::open(Path::new(&second).join("usr/bin/instance-access")).unwrap();
    old.set_modified(std::time::SystemTime::UNIX_EPOCH).unwrap();
    fs::set_permissions(Path::new(&second).join("usr"), fs::Permissions::from_mode(0o700)).unwrap();
    fs::set_permissions(Path::new(&second).join("usr/bin/instance-access"), fs::Permissions::from_mode(0o700)).unwrap();
    let (one, two) = (dir.path().join("one.tar"), dir.path().join("two.tar"));
    pack(&one, &[format!("amd64={first}")], &[]);
    pack(&two, &[format!("amd64={second}")], &[("TZ", "Asia/Tokyo"), ("LC_ALL", "C.UTF-8")]);
    assert_eq!(sha256(&one), sha256(&two));

    laid(Path::new(&second), "another program");
    pack(&two, &[format!("amd64={second}")], &[]);
    assert_ne!(sha256(&one), sha256(&two));
}

#[test]
fn what_is_no_architecture_or_no_folder_is_not_packed() {
    let dir = tempfile::tempdir().unwrap();
    let folder = laid(&dir.path().join("folder"), "program");
    let archive = dir.path().join("image.tar");
    for wrong in [format!("s390x={folder}"), "amd64=".to_owned(), "amd64=nowhere".to_owned(), folder.clone()] {
        let done = Command::new(file("release/image.sh")).arg(&archive).arg(&wrong).output().unwrap();
        let said = String::from_utf8_lossy(&done.stderr).into_owned();
        assert!(!done.status.success() && said.contains(&format!("{wrong}: not amd64=FOLDER")), "{wrong}: {said}");
        assert!(!archive.exists());
    }
}

/// Compares two folders with the script of a release, which says what differs and how it ended.
fn compared(one: &Path, other: &Path) -> (bool, String) {
    let done = Command::new(file("release/compare.sh")).arg(one).arg(other).output().unwrap();
    let said = [done.stdout, done.stderr].map(|it| String::from_utf8_lossy(&it).into_owned()).concat();
    (done.status.success(), said)
}

#[test]
fn two_builds_are_one_only_if_all_of_their_bytes_are_and_what_differs_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let (one, other) = (dir.path().join("one"), dir.path().join("other"));
    let authorities = "etc/ssl/certs/ca-certificates.crt";
    let program = "usr/bin/instance-access";
    for folder in [&one, &other] {
        laid(folder, "");
        fs::copy("/bin/true", folder.join(program)).unwrap();
    }
    let (same, said) = compared(&one, &other);
    assert!(same && said.contains(program) && said.contains(authorities), "{said}");

    // Another program: where it is another, by section and by word.
    fs::copy("/bin/false", other.join(program)).unwrap();
    let (same, said) = compared(&one, &other);
    assert!(!same && said.contains(&format!("1 of 2 files differ: {program}")), "{said}");
    assert!(said.contains("in section .rodata") && said.contains("< true") && said.contains("> false"), "{said}");

    // Something that only one of them has, whichever it is.
    fs::copy("/bin/true", other.join(program)).unwrap();
    fs::remove_file(other.join(authorities)).unwrap();
    for (first, second) in [(&one, &other), (&other, &one)] {
        let (same, said) = compared(first, second);
        assert!(!same && said.contains(&format!("1 of 2 files differ: {authorities}")), "{said}");
    }
    // Two folders without a file are no two builds that agree.
    let (none, nothing) = (dir.path().join("none"), dir.path().join("nothing"));
    for folder in [&none, &nothing] {
        fs::create_dir(folder).unwrap();
    }
    let (same, said) = compared(&none, &nothing);
    assert!(!same && said.contains("has a file"), "{said}");
}
