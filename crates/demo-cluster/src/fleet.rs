//! Three members of an etcd, and three hosts with an nginx and an agent each.

use std::fs::{self, File};
use std::path::PathBuf;

use testkit::artifacts::{self, NGINX, Server};
use testkit::net::{Host, Member, Net, Running, start_members};
use testkit::{Folder, process};

/// `worker_processes`.
pub const WORKERS: usize = 2;
/// The shortest that there is, so that the demo is.
pub const TTL: &str = "2s";

pub struct Fleet {
    pub hosts: Vec<Host>,
    pub members: Vec<Member>,
    pub net: Net,
    pub folder: Folder,
}

impl Fleet {
    /// The members run; the hosts are machines on which nothing runs yet.
    pub fn build() -> Result<Fleet, String> {
        if !process::is_root() {
            return Err("only root makes networks: run it as root".to_owned());
        }
        artifacts::require_nginx();
        let mut net = Net::new()?;
        let folder = Folder::new();
        let members = start_members(&mut net, folder.path(), 3, &[]);
        let endpoints: Vec<String> = members.iter().map(|member| member.url(&net)).collect();
        let cluster = format!("name = \"demo\"\nendpoints = {endpoints:?}\nttl = \"{TTL}\"");
        let names = ["web-1", "web-2", "web-3"];
        let hosts: Vec<Host> =
            names.iter().map(|name| Host::new(&mut net, folder.path(), name, &cluster)).collect();
        let fleet = Fleet { hosts, members, net, folder };
        (0..names.len()).try_for_each(|host| fleet.configure(host, "")).map_err(|error| error.to_string())?;
        Ok(fleet)
    }

    pub fn name(&self, host: usize) -> &str {
        self.net.name(self.hosts[host].machine)
    }

    fn home(&self, host: usize) -> PathBuf {
        self.hosts[host].folder.clone()
    }

    /// Writes its server's configuration. `more`: a directive beside what it needs.
    pub fn configure(&self, host: usize, more: &str) -> std::io::Result<()> {
        let temp: String = ["client_body", "proxy", "fastcgi", "scgi", "uwsgi"]
            .iter()
            .map(|what| format!("    {what}_temp_path temp_{what};\n"))
            .collect();
        let text = format!(
            "load_module {};\nheadcount nginx;\nworker_processes {WORKERS};\npid nginx.pid;\nerror_log error.log;\nevents {{}}\n\
             http {{\n    access_log off;\n{temp}    server {{ listen 127.0.0.1:8080; {more} location / {{ return 200 \"$pid\"; }} }}\n}}\n",
            artifacts::module(Server::Debian).display()
        );
        fs::write(self.home(host).join("nginx.conf"), text)
    }

    /// Starts its server.
    pub fn start_server(&mut self, host: usize) -> std::io::Result<()> {
        let home = self.home(host);
        let mut command = self.net.command(self.hosts[host].machine, NGINX);
        command.arg("-p").arg(&home).args(["-c", "nginx.conf", "-e", "error.log", "-g", "daemon off;"]);
        command.env("HEADCOUNT_RUNTIME_DIR", self.hosts[host].runtime()).current_dir(&home);
        let log = File::options().create(true).append(true).open(home.join("server.log"))?;
        command.stdout(log.try_clone()?).stderr(log);
        self.hosts[host].server = Some(Running::start(&mut command));
        Ok(())
    }

    pub fn start_agent(&mut self, host: usize) {
        self.hosts[host].start_agent(&self.net);
    }

    /// The member that the others follow, if they agree on one.
    pub fn leader(&self) -> Option<usize> {
        self.members.iter().position(|member| member.is_leader(&self.net))
    }

    /// The workers of its server, whose master may be gone.
    pub fn workers(&self, host: usize) -> Vec<i32> {
        let all = self.net.processes(self.hosts[host].machine).into_iter();
        all.filter(|&pid| process::title(pid).starts_with("nginx: worker")).collect()
    }

    /// It hears no member, and no member hears it.
    pub fn cut_off(&mut self, host: usize) {
        let members: Vec<usize> = self.members.iter().map(|member| member.machine).collect();
        self.net.part(&[self.hosts[host].machine], &members);
    }
}
