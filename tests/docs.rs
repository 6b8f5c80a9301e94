//! The documentation, held to the code: tables that are generated, headings that must be there, examples that apply.
//!
//! `UPDATE_DOCS=1 cargo test --test docs` writes the generated parts anew. They stand between
//! `<!-- generated: NAME -->` and `<!-- end of NAME -->`; all else is written by people.

mod docs {
    mod examples;
    mod headings;
    mod links;
    mod release;
    mod supply;
    mod tables;

    use std::path::{Path, PathBuf};

    /// The repository.
    fn root() -> &'static Path {
        Path::new(env!("CARGO_MANIFEST_DIR"))
    }

    /// Reads a file of the repository.
    #[track_caller]
    fn read(file: &str) -> String {
        std::fs::read_to_string(root().join(file)).unwrap_or_else(|error| panic!("{file}: {error}"))
    }

    /// Every page that is written for people, as paths in the repository.
    fn pages() -> Vec<PathBuf> {
        let is_page = |path: &PathBuf| path.extension().is_some_and(|extension| extension == "md");
        let below = |folder: &str| -> Vec<PathBuf> {
            let entries = std::fs::read_dir(root().join(folder)).unwrap();
            entries.map(|entry| entry.unwrap().path()).filter(is_page).collect()
        };
        let mut pages = below("");
        pages.extend(below("docs"));
        pages.extend(below("docs/gitops"));
        pages.extend(below("docs/runbooks"));
        pages.extend(below("charts/instance-access"));
        pages.sort();
        assert!(pages.len() > 5, "{pages:?}");
        pages
    }

    /// The page without what stands between fences, and what stands there, as (language, first line's number, text).
    fn split(page: &str) -> (String, Vec<(String, usize, String)>) {
        let (mut prose, mut blocks) = (String::new(), Vec::new());
        let mut block: Option<(String, usize, String)> = None;
        for (number, line) in page.lines().enumerate() {
            match (line.trim_start().strip_prefix("```"), block.as_mut()) {
                (Some(_), Some(_)) => blocks.extend(block.take()),
                (Some(language), None) => block = Some((language.trim().to_owned(), number + 2, String::new())),
                (None, Some((.., text))) => {
                    text.push_str(line);
                    text.push('\n');
                }
                (None, None) => {
                    prose.push_str(line);
                    prose.push('\n');
                }
            }
        }
        assert!(block.is_none(), "a fence is not closed");
        (prose, blocks)
    }
}
