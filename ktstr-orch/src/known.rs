//! What an executable says about itself, remembered as long as it is the same file.
//!
//! Starting another program to ask for its version costs more than much of what a run prepares. An answer
//! is kept with the question and with the file's path, length, time of change and inode, and counts for
//! nothing else. One that cannot be kept is asked for again.

use std::{
    fs,
    io::Write,
    path::{Path, PathBuf},
};

use crate::{store::digest, warm::identity};

/// Answers below one directory, which need not exist.
#[derive(Debug)]
pub struct Known {
    dir: PathBuf,
}

impl Known {
    /// Below `dir`.
    pub fn new(dir: PathBuf) -> Self {
        Self { dir }
    }

    /// The answer of `program` to `question`, which must be one line; `ask` asks it.
    pub fn answer<E>(
        &self,
        program: &Path,
        question: &str,
        ask: impl FnOnce() -> Result<String, E>,
    ) -> Result<String, E> {
        let title = format!("{question} of {}\n", identity(program));
        let path = self.dir.join(&digest::of_parts([title.as_bytes()])[..32]);
        if let Ok(kept) = fs::read_to_string(&path)
            && let Some(answer) = kept.strip_prefix(&title)
        {
            return Ok(answer.to_owned());
        }
        let answer = ask()?;
        if let Err(error) = self.keep(&path, &title, &answer) {
            tracing::debug!("{} is not kept: {error}", path.display());
        }
        Ok(answer)
    }

    /// Under its name when it is complete.
    fn keep(&self, path: &Path, title: &str, answer: &str) -> std::io::Result<()> {
        fs::create_dir_all(&self.dir)?;
        let mut unfinished = tempfile::NamedTempFile::new_in(&self.dir)?;
        unfinished.write_all(title.as_bytes())?;
        unfinished.write_all(answer.as_bytes())?;
        unfinished.persist(path).map(drop).map_err(|error| error.error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(known: &Known, program: &Path, question: &str, now: &str) -> String {
        known.answer(program, question, || Ok::<_, ()>(now.to_owned())).unwrap()
    }

    #[test]
    fn the_same_file_is_asked_once_and_another_one_again() {
        let dir = tempfile::tempdir().unwrap();
        let known = Known::new(dir.path().join("known"));
        let program = dir.path().join("program");
        fs::write(&program, "one").unwrap();
        assert_eq!(answer(&known, &program, "--version", "1\n"), "1\n");
        assert_eq!(answer(&known, &program, "--version", "2\n"), "1\n");
        assert_eq!(answer(&known, &program, "--list", "3"), "3", "another question");
        fs::write(&program, "changed").unwrap();
        assert_eq!(answer(&known, &program, "--version", "4"), "4");
    }

    #[test]
    fn neither_a_failure_nor_what_is_damaged_is_kept() {
        let dir = tempfile::tempdir().unwrap();
        let known = Known::new(dir.path().join("known"));
        let program = dir.path().join("program");
        fs::write(&program, "one").unwrap();
        assert_eq!(known.answer(&program, "--version", || Err::<String, _>(7)), Err(7));
        assert_eq!(answer(&known, &program, "--version", "1"), "1");
        let file = fs::read_dir(dir.path().join("known")).unwrap().next().unwrap().unwrap().path();
        fs::write(file, "something else").unwrap();
        assert_eq!(answer(&known, &program, "--version", "2"), "2");
    }
}
