//! Renders chat templates in a process of its own.
//!
//! A template is a program from elsewhere. Its steps can be counted, but one step can double a text, nest lists without end or go
//! through a billion numbers, so nothing inside of a process can hold it to memory, stack and time: the process is what is limited, and
//! what becomes of it is a refusal.

use std::io::{self, Read, Write};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{ChatTemplate, Message};
use crate::{Error, Result};

/// Address space of the process. A template and a long conversation take some ten million bytes.
const MOST_MEMORY_BYTES: u64 = 512 << 20;
/// Seconds of processor time. A long conversation takes some milliseconds.
const MOST_PROCESSOR_SECONDS: u64 = 5;
/// From the start to the answer, on a machine that does much else.
const LONGEST: Duration = Duration::from_secs(30);
/// Of the conversation as the template writes it.
const MOST_WRITTEN_BYTES: usize = 16 << 20;
/// Of what the process says before it ends.
const MOST_SAID_BYTES: u64 = 4096;

/// What the process is asked.
#[derive(Serialize, Deserialize)]
struct Request {
    template: ChatTemplate,
    messages: Vec<Message>,
}

/// What it answers.
#[derive(Serialize, Deserialize)]
enum Answer {
    Rendered(String),
    /// The template refuses the conversation.
    Unsupported(String),
    /// It can't be rendered.
    Malformed(String),
}

impl ChatTemplate {
    /// The conversation as the model wants it, up to where its answer begins, written by `program`: a process that calls
    /// [`limit_rendering`], reads its standard input to the end, and writes what [`answer_rendering`] makes of that to its standard
    /// output.
    ///
    /// # Errors
    /// [`Error::Unsupported`] where the template refuses the conversation or takes more memory, stack or time than it may,
    /// [`Error::Malformed`] where it can't be rendered, [`Error::Io`] where the process can't be started.
    pub fn render(&self, messages: &[Message], mut program: Command) -> Result<String> {
        let request = Request { template: self.clone(), messages: messages.to_vec() };
        let request = serde_json::to_vec(&request).expect("texts are JSON");
        let ended = ask(&mut program, &request).map_err(|error| Error::Io(fs_error(&program, error)))?;
        match ended.answer() {
            Ok(Answer::Rendered(text)) => Ok(text),
            Ok(Answer::Unsupported(what)) => Err(Error::unsupported(&self.path, what)),
            Ok(Answer::Malformed(what)) => Err(Error::malformed(&self.path, what)),
            Err(limit) => Err(Error::unsupported(&self.path, format!("the chat template {limit}"))),
        }
    }
}

fn fs_error(program: &Command, error: io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{}: {error}", program.get_program().to_string_lossy()))
}

/// Limits this process for good: its memory and its processor time, and leaves no core file behind.
///
/// Windows has no such limits, and macOS none of memory: there only the time is limited, by [`ChatTemplate::render`].
///
/// # Errors
/// What the system says.
pub fn limit_rendering() -> io::Result<()> {
    #[cfg(unix)]
    {
        use nix::sys::resource::{Resource, getrlimit, setrlimit};
        // Of time, the soft limit says why it ends, and the hard one ends what does not listen.
        let limits = [
            (Resource::RLIMIT_AS, MOST_MEMORY_BYTES, MOST_MEMORY_BYTES),
            (Resource::RLIMIT_CPU, MOST_PROCESSOR_SECONDS, MOST_PROCESSOR_SECONDS + 1),
            (Resource::RLIMIT_CORE, 0, 0),
        ];
        for (resource, soft, hard) in limits {
            let (_, given) = getrlimit(resource)?;
            setrlimit(resource, soft.min(given), hard.min(given))?;
        }
    }
    Ok(())
}

/// Renders what [`ChatTemplate::render`] asks for in `request`. Only for a process that can be lost.
///
/// # Errors
/// Where `request` is none.
pub fn answer_rendering(request: &[u8]) -> Result<Vec<u8>, serde_json::Error> {
    let Request { template, messages } = serde_json::from_slice(request)?;
    let answer = match template.render_here(&messages) {
        Ok(text) if text.len() > MOST_WRITTEN_BYTES => {
            Answer::Unsupported(format!("the chat template writes more than {} MiB", MOST_WRITTEN_BYTES >> 20))
        }
        Ok(text) => Answer::Rendered(text),
        Err(Error::Unsupported { what, .. }) => Answer::Unsupported(what),
        Err(Error::Malformed { what, .. }) => Answer::Malformed(what),
        Err(error) => Answer::Malformed(error.to_string()),
    };
    serde_json::to_vec(&answer)
}

/// A process that has ended.
struct Ended {
    /// `None` where it was ended because it took too long.
    status: Option<ExitStatus>,
    wrote: Vec<u8>,
    said: String,
}

fn ask(program: &mut Command, request: &[u8]) -> io::Result<Ended> {
    let program = program.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).env_remove("RUST_BACKTRACE");
    let mut child = program.spawn()?;
    let (input, output, error) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
    std::thread::scope(|scope| {
        scope.spawn(move || {
            // One that has ended reads no more, and its end says why.
            let _ = input.map(|mut input| input.write_all(request));
        });
        let said = scope.spawn(move || read(error, MOST_SAID_BYTES));
        let (sender, wrote) = mpsc::channel();
        scope.spawn(move || sender.send(read(output, 8 * MOST_WRITTEN_BYTES as u64)));
        let wrote = wrote.recv_timeout(LONGEST);
        if wrote.is_err() {
            child.kill()?;
        }
        let status = child.wait()?;
        let said = said.join().expect("reading does not panic");
        Ok(Ended {
            status: wrote.is_ok().then_some(status),
            wrote: wrote.unwrap_or_default(),
            said: String::from_utf8_lossy(&said).trim().to_owned(),
        })
    })
}

/// What comes out of a pipe, as far as `most` bytes. The rest is read too, so that no one waits for it to be.
fn read(pipe: Option<impl Read>, most: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    if let Some(mut pipe) = pipe {
        // What was there before a failure is what there is.
        let _ = pipe.by_ref().take(most).read_to_end(&mut bytes);
        let _ = io::copy(&mut pipe, &mut io::sink());
    }
    bytes
}

impl Ended {
    /// The answer, or what the template did instead.
    fn answer(&self) -> Result<Answer, String> {
        let Some(status) = self.status else {
            return Err(format!("takes more than {} seconds", LONGEST.as_secs()));
        };
        if let (true, Ok(answer)) = (status.success(), serde_json::from_slice(&self.wrote)) {
            return Ok(answer);
        }
        #[cfg(unix)]
        {
            use nix::sys::signal::Signal;
            use std::os::unix::process::ExitStatusExt;
            let signal = status.signal().and_then(|signal| Signal::try_from(signal).ok());
            match signal {
                Some(Signal::SIGXCPU) => {
                    return Err(format!("takes more than {MOST_PROCESSOR_SECONDS} seconds of processor time"));
                }
                Some(Signal::SIGSEGV) => return Err(TOO_DEEP.to_owned()),
                _ => {}
            }
        }
        let has = |what: &str| self.said.contains(what);
        Err(match (has("memory allocation of"), has("overflowed its stack")) {
            (true, _) => format!("takes more than {} MiB of memory", MOST_MEMORY_BYTES >> 20),
            (_, true) => TOO_DEEP.to_owned(),
            (false, false) => format!("ends the process that renders it: {status}: {}", self.said.replace('\n', " ")),
        })
    }
}

const TOO_DEEP: &str = "nests more deeply than the stack of the process that renders it";
