//! Renders chat templates in a child process, which is this program again.

use std::io::Read;
use std::path::Path;
use std::process::{Command, ExitCode};

use compressor_format::{answer_rendering, limit_rendering};

use crate::failure;
use crate::out::{self, errln};

/// The first argument of the child; it is no command, so no help text and no completion shows it.
const RENDER: &str = "render-chat-template";

/// This very program.
pub(crate) fn own_program() -> std::io::Result<Command> {
    // Linux keeps this name even where the file was replaced since: a rebuild during a long run.
    let own = Path::new("/proc/self/exe");
    let program = if own.exists() { own.to_owned() } else { std::env::current_exe()? };
    Ok(Command::new(program))
}

/// The process that [`answer`] runs in.
pub(crate) fn child() -> std::io::Result<Command> {
    let mut program = own_program()?;
    program.arg(RENDER);
    Ok(program)
}

/// Whether this is the child. Asked before anything else is done: memory and threads of its own would count.
pub(crate) fn is_asked() -> bool {
    std::env::args_os().nth(1).is_some_and(|first| first == RENDER)
}

/// What the child does.
pub(crate) fn answer() -> ExitCode {
    let mut request = Vec::new();
    let answer = limit_rendering()
        .and_then(|()| std::io::stdin().lock().read_to_end(&mut request))
        .map_err(|error| error.to_string())
        .and_then(|_| answer_rendering(&request).map_err(|error| error.to_string()));
    match answer {
        Ok(answer) => {
            out::bytes(&answer);
            ExitCode::SUCCESS
        }
        Err(error) => {
            errln!("{error}");
            ExitCode::from(failure::COULD_NOT_RUN)
        }
    }
}
