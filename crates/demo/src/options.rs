//! The command line.

use std::ffi::OsString;
use std::path::PathBuf;

pub const USAGE: &str = "\
usage: headcount-demo --library DIR [--nginx FILE] [--keep]

  --library DIR   the PREFIX under which `make install` put the library
  --nginx FILE    the full path of the server's program (default /usr/sbin/nginx)
  --keep          keep the server's folder (configuration, error.log)";

pub struct Options {
    pub library: PathBuf,
    pub nginx: PathBuf,
    pub keep: bool,
}

impl Options {
    /// `None`: the user wants help.
    pub fn parse(arguments: impl Iterator<Item = OsString>) -> Result<Option<Self>, String> {
        let mut library = None;
        let mut nginx = PathBuf::from("/usr/sbin/nginx");
        let mut keep = false;
        let mut arguments = arguments;
        while let Some(argument) = arguments.next() {
            let name = argument.to_string_lossy().into_owned();
            let mut value = || arguments.next().map(PathBuf::from).ok_or(format!("{name} needs a value"));
            match name.as_str() {
                "--library" => library = Some(value()?),
                "--nginx" => nginx = value()?,
                "--keep" => keep = true,
                "--help" | "-h" => return Ok(None),
                _ => return Err(format!("unknown argument {name}")),
            }
        }
        // nginx executes this path again during an upgrade, whatever its working directory is then.
        if !nginx.is_absolute() {
            return Err(format!("--nginx {} is not a full path", nginx.display()));
        }
        let library = library.ok_or("--library is missing")?;
        Ok(Some(Self { library, nginx, keep }))
    }
}
