//! The chart as it is released: one archive, as `helm package` makes it.

use std::fs;
use std::process::Command;

use super::helm::{IMAGE, chart, file, run, template};

#[test]
fn the_packaged_chart_has_every_file_and_renders_as_the_folder_does() {
    let dir = tempfile::tempdir().unwrap();
    let into = dir.path().to_str().unwrap();
    let done = run(&["package", chart().to_str().unwrap(), "--destination", into]);
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    let archive = dir.path().join(format!("instance-access-{}.tgz", env!("CARGO_PKG_VERSION")));
    assert!(archive.is_file(), "helm made something else: {}", String::from_utf8_lossy(&done.stdout));

    // Each file that the repository has of it, but for the values of tests; `.helmignore` leaves out none that is rendered or
    // read.
    let listed = Command::new("tar").arg("-tzf").arg(&archive).output().unwrap();
    let mut packed: Vec<_> = String::from_utf8(listed.stdout).unwrap().lines().map(str::to_owned).collect();
    packed.sort();
    let mut known = Vec::new();
    let mut folders = vec![chart()];
    while let Some(folder) = folders.pop() {
        for path in fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()) {
            if path.is_dir() {
                folders.extend((!path.ends_with("ci")).then_some(path));
            } else {
                known.push(path.strip_prefix(file("charts")).unwrap().to_str().unwrap().to_owned());
            }
        }
    }
    known.sort();
    assert!(known.len() > 15, "{known:?}");
    assert_eq!(packed, known);

    let of_folder = template(&["--set", IMAGE]).unwrap();
    let home = tempfile::tempdir().unwrap();
    let of_archive = super::helm::command(home.path())
        .args(["template", "access", archive.to_str().unwrap(), "--namespace", "ops", "--set", IMAGE])
        .output()
        .unwrap();
    assert!(of_archive.status.success(), "{}", String::from_utf8_lossy(&of_archive.stderr));
    assert_eq!(String::from_utf8(of_archive.stdout).unwrap(), of_folder);
}
