//! A hostile local user, and a stranger whom nobody may signal: programs that the tests run as others.
//!
//! `attacker user ATTACK FOLDER NAME [MODEL [PIDS]]` puts things into the folder, says what it did, and goes on until it is
//! killed. `attacker stranger` has every signal wait for ever, where the kernel shows it. Both end with their standard
//! input.

use std::io::Read;
use std::path::PathBuf;

use attacker::user::{Ground, begin};

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match words.as_slice() {
        ["stranger"] => {
            attacker::block_signals();
            println!("ready");
        }
        ["user", attack, folder, name, more @ ..] => {
            let ground = Ground {
                folder: PathBuf::from(folder),
                name: (*name).to_owned(),
                model: more.first().filter(|path| !path.is_empty()).map(PathBuf::from),
                strangers: more
                    .get(1)
                    .map_or("", |pids| pids)
                    .split(',')
                    .filter_map(|p| p.parse().ok())
                    .collect(),
            };
            match begin(attack, &ground) {
                Ok(done) => println!("ready: {done}"),
                Err(e) => println!("failed: {e}"),
            }
        }
        _ => panic!("attacker user ATTACK FOLDER NAME [MODEL [PIDS]], or attacker stranger"),
    }
    // Its end is the end of the test.
    let _ = std::io::stdin().read_to_end(&mut Vec::new());
}
