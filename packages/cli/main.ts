import { messageOf, printableLines, version } from '@mizzen/common';
import { Command } from 'commander';

/** The `mizzen` command. Each subcommand loads only what it needs: a sidecar is started by this program too. */
const program = new Command('mizzen')
  .configureOutput({ writeErr: (text) => process.stderr.write(printableLines(text)) })
  .description('A service mesh: control plane, sidecars, gateways and the tools to look into them.')
  .version(version, '-v, --version')
  .showSuggestionAfterError()
  .showHelpAfterError('(mizzen --help lists all commands)')
  .addHelpText(
    'after',
    `
Try it:
  mizzen up examples/bookinfo          run a whole mesh on this machine
  mizzen apply -f route.yaml           change where requests go
  mizzen status                        which proxies are in step
  mizzen proxy-config routes reviews-v1   what a sidecar has in effect, and which line of YAML it came from
  mizzen kubeconfig > kc && kubectl --kubeconfig kc get virtualservices

State is kept in ~/.mizzen; --home or MIZZEN_HOME chooses another place.`,
  );

const home = ['--home <dir>', 'where the mesh keeps its state (default: $MIZZEN_HOME or ~/.mizzen)'] as const;
const output = ['-o, --output <format>', 'json or yaml instead of a table'] as const;
const namespace = ['-n, --namespace <name>', 'the namespace (default: default)'] as const;
const collect = (value: string, all: readonly string[]) => [...all, value];

program
  .command('up <dir>')
  .description('run a folder of resources and workloads as a mesh on this machine')
  .option(...home)
  .option('--fresh', 'forget what was applied through the API in earlier runs')
  .option('--quiet', "do not print the workloads' output")
  .option('--isolate', 'give each workload a host of its own: network namespace, address, captured traffic (needs root)')
  .option('--latency <time>', 'with --isolate: what every packet between hosts takes longer, 20ms')
  .option('--loss <percent>', 'with --isolate: how many packets are lost, 1%')
  .option('--api-port <port>', 'port of the configuration API; 0 chooses one', '15080')
  .option('--xds-port <port>', 'port of xDS and the CA; 0 chooses one', '15012')
  .addHelpText('after', '\nThe folder is followed: saving a file changes the mesh. Ctrl-C ends everything in order.')
  .action(async (directory: string, options) => (await import('./commands/up.ts')).up(directory, options));

program
  .command('control')
  .description('run the control plane alone')
  .option(...home)
  .option('--dir <dir>', 'a folder of resources to follow')
  .option('--host <address>', 'address to listen on', '127.0.0.1')
  .option('--api-port <port>', 'port of the configuration API; 0 chooses one', '15080')
  .option('--xds-port <port>', 'port of xDS and the CA; 0 chooses one', '15012')
  .option('--xds-host <address>', 'address for xDS and the CA, if it is another')
  .option('--xds-plain-port <port>', 'a plain-text xDS port on loopback, for other control-plane clients (Istio uses 15010)')
  .option('--trust-domain <name>', 'the trust domain of identities', 'cluster.local')
  .option('--broker <host:port>', "the mesh's own broker, for Components of type pubsub.mizzen")
  .option('--rate-limit-redis <address>', 'count limits of the whole mesh in this Redis, together with other control planes')
  .option('--issuer <file>', 'a module whose default export signs the certificates of workloads (CertificateIssuer of @mizzen/control)')
  .option('--ca-address <host:port>', "have workloads' certificates signed there (Istio's CreateCertificate: istiod, another control plane)")
  .option('--ca-root-file <file>', 'its roots')
  .option('--ca-token-file <file>', 'the token to prove oneself there with')
  .option('--ca-cert-file <file>', 'or a certificate')
  .option('--ca-key-file <file>', 'and its key')
  .option(
    '--ca-forwarder <namespace/account>',
    'this service account may ask for identities of others, or NAMESPACE/ACCOUNT=NAMESPACE/ACCOUNT,NAMESPACE/* for those alone; may be repeated',
    collect,
    [],
  )
  .option(
    '--allow-fetch <host>',
    'let URLs in configuration (jwksUri, spiffeBundleUrl, ACME servers) lead to this host of this machine or link-local address; may be repeated',
    collect,
    [],
  )
  .option('--workload-issuer <url>', 'take service account tokens of this issuer, too (OpenID Connect Discovery); may be repeated', collect, [])
  .option('--kubernetes-api <url>', 'ask this Kubernetes API server about service account tokens, too (TokenReview)')
  .option('--kubernetes-token-file <file>', 'the token to ask it with', '/var/run/secrets/kubernetes.io/serviceaccount/token')
  .option('--kubernetes-ca-file <file>', 'its roots', '/var/run/secrets/kubernetes.io/serviceaccount/ca.crt')
  .option('--log-level <level>', 'debug, info, warn or error', 'info')
  .action(async (options) => (await import('./commands/control.ts')).control(options));

program
  .command('proxy')
  .description('run one sidecar or gateway')
  .requiredOption('--config <file>', 'who this proxy is, where its control plane is, where it listens; or an Envoy bootstrap with static_resources')
  .option('--concurrency <n>', 'event loops, each a process of its own; 0: as many as there are cores (default: 1)')
  .option('--drain-time <seconds>', 'how long connections may take to end when it stops (default: 5)')
  .option('--restart-drain-time <seconds>', 'how long open streams may go on in the old process after a hot restart (default: 3600)')
  .option('--max-draining <n>', 'old processes that may have open streams; beyond it the oldest ends them (default: 24)')
  .option('--log-level <level>', 'debug, info, warn or error', 'info')
  .addHelpText(
    'after',
    `
Security: the outbound listener on 127.0.0.1 has no password. Every user of this machine, or of its network namespace, can call other services as
this workload, and can reach the application's own port without the mesh's policies. Give the workload a network namespace of its own to prevent both.`,
  )
  .action(async (options) => (await import('./commands/proxy.ts')).proxy(options));

program
  .command('agent')
  .description('give identities to the processes of this machine by what they are (SPIFFE Workload API)')
  .requiredOption('--entries <file>', 'YAML: which processes have which service account')
  .option('--socket <path>', 'the Unix socket, which anybody may open', '/run/mizzen/workload/api.sock')
  .option(...home)
  .option('--control <host:port>', "the control plane's xDS port (default: of the mesh in --home)")
  .option('--token-file <file>', "bootstrap token of istio-system/mizzen-agent (default: one is made, on the mesh's own machine)")
  .option('--root-cert <file>', 'the roots of the mesh (default: in --home)')
  .option('--trust-domain <name>', 'the trust domain of the mesh (default: as in --home)')
  .option('--admin-port <port>', 'port on 127.0.0.1 for readiness and metrics (default: none)')
  .option('--log-level <level>', 'debug, info, warn or error', 'info')
  .action(async (options) => (await import('./commands/agent.ts')).agent(options));

const brokerCommand = program
  .command('broker')
  .description('run the embedded broker alone: durable topics for the message mesh')
  .option(...home)
  .option('--data <dir>', 'where messages are kept (default: broker/ in --home)')
  .option('--host <address>', 'address to listen on', '127.0.0.1')
  .option('--port <port>', 'port to listen on; 0 chooses one', '15030')
  .option('--config <file>', 'who it is in the mesh, and where its control plane is: it then speaks mutual TLS')
  .option('--plain', 'without an identity, for loopback')
  .option('--partitions <n>', 'of topics that are new', '4')
  .option('--retention <duration>', 'how long messages are kept; 0: for ever', '168h')
  .option('--retention-bytes <n>', 'how much of a partition is kept; 0: all', '0')
  .option('--no-sync', 'confirm before messages are on disk: faster, and lost with the machine')
  .option('--log-level <level>', 'debug, info, warn or error', 'info')
  .action(async (options) => (await import('./commands/broker.ts')).broker(options));
brokerCommand
  .command('check')
  .description('verify everything in the directory of a stopped broker; exit code 1 when records are lost or a topic is unusable')
  .action(async (_, command) => (await import('./commands/broker.ts')).brokerCheck(command.optsWithGlobals()));
brokerCommand
  .command('repair')
  .description('make the damaged directory of a stopped broker usable; what cannot be read is moved to damaged/ in it')
  .action(async (_, command) => (await import('./commands/broker.ts')).brokerRepair(command.optsWithGlobals()));

program
  .command('run')
  .description('run an application beside its sidecar, joined to a running mesh')
  .argument('<command...>', 'the program and its arguments, after --')
  .option(...home)
  .option('--name <name>', 'name of this workload (default: from the program)')
  .option('-n, --namespace <name>', 'its namespace', 'default')
  .option('--service-account <name>', 'the identity that it carries', 'default')
  .option('--label <name=value>', 'a label, may be repeated; services select workloads by labels', collect, [])
  .option('--port <port[:name][=app port]>', 'a port that it serves, may be repeated; the program is told its port in PORT', collect, [])
  .option('--capture', 'redirect what the program sends to the sidecar, instead of HTTP_PROXY (needs root)')
  .option('--capture-by <cgroup|group>', 'how --capture recognizes the program (default: by cgroup; by group, with a warning, where cgroups cannot be matched)')
  .option('--socket-folder <folder>', 'where a Sidecar object may name Unix sockets for it, may be repeated; @PREFIX for abstract names', collect, [])
  .option('--no-outbound-port', 'no port on 127.0.0.1 for its calls, and no HTTP_PROXY: it calls through a socket of --socket-folder')
  .option('--isolate', 'give it a network of its own, with all of its traffic captured; in a lab, a host (needs root)')
  .option('--annotation <name=value>', "what is captured, by Istio's annotations, may be repeated", collect, [])
  .option('--address <address>', 'where others reach the sidecar (default: the address that leads to the control plane)')
  .option('--control <host:port>', 'the control plane (default: the one of --home)')
  .option('--trust-domain <name>', 'the trust domain of the mesh (default: as in --home)')
  .option('--token-file <file>', "bootstrap token (default: $MIZZEN_TOKEN, else one is made, on the mesh's own machine)")
  .option('--root-cert <file>', "the mesh's root certificate (default: the one of --home)")
  .option('--drain-time <seconds>', 'how long requests under way may take when it ends (default: 2)')
  .option('--verbose', 'print what the sidecar does')
  .addHelpText(
    'after',
    `
Example: mizzen run --name hello --label app=hello --port 8000:http -- python3 -m http.server $PORT

Security: without --isolate, every user of this machine can call other services as this workload through the sidecar's port on 127.0.0.1,
and can reach the program's own port without the mesh's policies. --isolate prevents both, and so do Unix sockets: --socket-folder,
--no-outbound-port and a Sidecar object (docs/security.md, Ports on loopback). DAPR_API_TOKEN protects the message API.`,
  )
  .action(async (command: string[], options) => (await import('./commands/run.ts')).run(command, options));

program
  .command('hold-sockets <outbound-port> <dns-port>', { hidden: true })
  .action(async (outboundPort: string, dnsPort: string) => (await import('./commands/hold-sockets.ts')).holdSockets(Number(outboundPort), Number(dnsPort)));

program
  .command('capture')
  .description("redirect this machine's (or a network namespace's) traffic to a sidecar, or stop it")
  .option('--remove', 'take the rules away')
  .option('--dry-run', 'print the rules instead')
  .option('--engine <name>', 'nftables or iptables', 'nftables')
  .option('--netns <name>', 'in this network namespace (ip netns)')
  .option('--force', 'even when other rules redirect already')
  .option('--annotation <name=value>', "settings by Istio's annotations (traffic.sidecar.istio.io/...), may be repeated", collect, [])
  .option('--outbound-port <port>', 'where TCP that leaves goes (default: 15001)')
  .option('--inbound-port <port>', 'where TCP that comes goes (default: 15006)')
  .option('--dns-port <port>', 'where queries for names go (default: 15053)')
  .option('--no-dns', 'leave queries for names alone')
  .option('--proxy-uid <uids>', "the sidecar's user, whose traffic is left alone (default: 1337)")
  .option('--proxy-gid <gids>', "the sidecar's group, whose traffic is left alone (default: 1337)")
  .option('--include-inbound-ports <ports>', 'only these; * for all (default: *)')
  .option('--exclude-inbound-ports <ports>', 'all but these')
  .option('--include-outbound-ranges <ranges>', 'only to these, 10.0.0.0/8,fd00::/8; * for all (default: *)')
  .option('--exclude-outbound-ranges <ranges>', 'all but to these')
  .option('--include-outbound-ports <ports>', 'these even outside of the included ranges')
  .option('--exclude-outbound-ports <ports>', 'all but to these')
  .option('--exclude-uids <uids>', 'leave these users alone')
  .option('--exclude-gids <gids>', 'leave these groups alone')
  .option('--exclude-interfaces <names>', 'leave these network interfaces alone')
  .addHelpText('after', '\nIt changes all rules or none, and may be repeated: the newest settings hold. The sidecar runs as user 1337.')
  .action(async (options) => (await import('./commands/capture.ts')).capture(options));

const credential = program.command('credential').description('what consumers of APIs prove themselves by');
credential
  .command('issue <consumer>')
  .description('make a credential, store its hash, and show it once')
  .option(...home)
  .option(...namespace)
  .option('--kind <kind>', 'api-key, basic or hmac', 'api-key')
  .option('--name <name>', 'name of the Credential (default: made of the consumer and the kind)')
  .option('--username <name>', 'with --kind basic (default: the consumer)')
  .option('--expires <time>', 'RFC 3339')
  .action(async (consumer: string, options) => (await import('./commands/credential.ts')).issue(consumer, options));

const messages = program.command('messages').description('topics of the embedded broker, and who consumes them');
messages
  .command('topics')
  .description('topics, groups and how far behind each is')
  .option(...home)
  .option('--broker <host:port>', 'a broker that runs with --plain (default: the one of --home)')
  .action(async (options) => (await import('./commands/messages.ts')).topics(options));
messages
  .command('replay <topic> <group>')
  .description('deliver again what a group has had')
  .option(...home)
  .option('--broker <host:port>', 'a broker that runs with --plain (default: the one of --home)')
  .option('--from <offset-or-time>', 'an offset, or a time in RFC 3339', '0')
  .option('--component <namespace/name>', 'the Component of the topic (default: the only one that has it)')
  .action(async (topic: string, group: string, options) => (await import('./commands/messages.ts')).replay(topic, group, options));
messages
  .command('adopt <topic> <component>')
  .description('give a topic of an earlier version, with its groups, to a Component (NAMESPACE/NAME)')
  .option(...home)
  .option('--broker <host:port>', 'a broker that runs with --plain (default: the one of --home)')
  .action(async (topic: string, component: string, options) => (await import('./commands/messages.ts')).adopt(topic, component, options));

const lab = program.command('lab').description('the hosts of a mesh that runs with `mizzen up --isolate`: what happens to them');
lab
  .command('list')
  .description('hosts, addresses, and who is cut off from whom')
  .option(...home)
  .action(async (options) => (await import('./commands/lab.ts')).list(options));
lab
  .command('exec <host> <command...>')
  .description('run a command on a host: mizzen lab exec reviews-v1 -- curl http://ratings:9080/ratings/0')
  .option(...home)
  .action(async (host: string, command: string[], options) => (await import('./commands/lab.ts')).exec(host, command, options));
lab
  .command('partition <a> <b>')
  .description('drop every packet between two: names of hosts, of workloads, or control')
  .option(...home)
  .action(async (a: string, b: string, options) => (await import('./commands/lab.ts')).partition(a, b, options));
lab
  .command('heal [a] [b]')
  .description('undo a partition, or all of them')
  .option(...home)
  .action(async (a: string | undefined, b: string | undefined, options) => (await import('./commands/lab.ts')).heal(a, b, options));
for (const [verb, description] of [
  ['pause', 'stop everything that runs on a host, as if it hung'],
  ['resume', 'let it go on'],
  ['kill', 'kill everything that runs on a host; the runner starts it again'],
] as const)
  lab
    .command(`${verb} <host>`)
    .description(description)
    .option(...home)
    .action(async (host: string, options) => (await import('./commands/lab.ts')).signal(verb, host, options));
lab
  .command('clean')
  .description('remove what a killed run has left')
  .option('--all', 'of every mesh on this machine whose runner is gone')
  .option(...home)
  .action(async (options) => (await import('./commands/lab.ts')).clean(options));

program
  .command('apply')
  .description('create or change resources from files')
  .requiredOption('-f, --file <path>', 'a file, a folder or - for standard input; may be repeated', collect, [])
  .option(...namespace)
  .option(...home)
  .option(...output)
  .action(async (options) => (await import('./commands/resources.ts')).apply(options));

program
  .command('get <kind> [names...]')
  .description('show resources: mizzen get virtualservices, mizzen get vs reviews -o yaml')
  .option(...namespace)
  .option('-A, --all-namespaces', 'of all namespaces')
  .option('-l, --selector <labels>', 'only those with these labels')
  .option('-w, --watch', 'go on and show changes')
  .option(...home)
  .option(...output)
  .action(async (kind: string, names: string[], options) => (await import('./commands/resources.ts')).get([kind, ...names], options));

program
  .command('delete [kind] [names...]')
  .description('delete resources by name or by file')
  .option('-f, --file <path>', 'delete what these files define; may be repeated', collect, [])
  .option(...namespace)
  .option(...home)
  .option(...output)
  .action(async (kind: string | undefined, names: string[], options) =>
    (await import('./commands/resources.ts')).remove([...(kind ? [kind] : []), ...names], options),
  );

program
  .command('status')
  .description('every proxy: synced, stale or NACKed, with version and age; and what is wrong in the configuration')
  .option(...home)
  .option(...output)
  .action(async (options) => (await import('./commands/status.ts')).status(options));

program
  .command('proxy-config <type> <proxy>')
  .alias('pc')
  .description('what a proxy has in effect: listeners, routes, clusters, endpoints or secrets')
  .option(...home)
  .option(...output)
  .action(async (type: string, proxy: string, options) => (await import('./commands/proxy-config.ts')).proxyConfig(type, proxy, options));

const ca = program.command('ca').description("the mesh's certificate authority, and changes of its root");
ca.command('status')
  .description('the roots that are trusted, which of them signs, and where a change of roots stands')
  .option(...home)
  .option(...output)
  .action(async (options) => (await import('./commands/ca.ts')).status(options));
ca.command('rotate')
  .description('change the root in steps, none of which cuts anybody off: prepare, switch, finish')
  .option('--step <step>', 'this step only: prepare, switch or finish')
  .option('--force', 'also while proxies are not ready')
  .option('--timeout <seconds>', 'how long each step waits for the proxies', '120')
  .option(...home)
  .addHelpText('after', '\nThe next root is made, unless the files root-cert.pem, ca-cert.pem and ca-key.pem lie in ca/next of the home.')
  .action(async (options) => (await import('./commands/ca.ts')).rotate(options));
ca.command('revoke [serial]')
  .description('have a certificate of a workload refused by everybody; its connections that are open stay')
  .option('--identity <spiffe-id>', 'all that this identity has, instead of one by its serial number (see ca/issued.log)')
  .option(...home)
  .action(async (serial: string | undefined, options) => (await import('./commands/ca.ts')).revoke(serial, options));
ca.command('export')
  .description('the roots that this mesh trusts, for others')
  .option('--format <format>', 'pem, or spiffe for a SPIFFE bundle', 'pem')
  .option(...home)
  .action(async (options) => (await import('./commands/ca.ts')).exportBundle(options));

const authz = program.command('authz').description('rules of authorization: who may call what');
authz
  .command('check <proxy>')
  .description('the AuthorizationPolicies that a proxy has in effect, and what they decide about a request')
  .option('--from <identity>', 'who calls: NAMESPACE/SERVICEACCOUNT or spiffe://... (default: nobody who has proved it)')
  .option('--method <method>', 'of the request (default: GET)')
  .option('--path <path>', 'of the request (default: /)')
  .option('--host <name>', 'that the request is for')
  .option('--header <name=value>', 'of the request, may be repeated', collect, [])
  .option('--claim <name=value>', "of the end user's token, may be repeated", collect, [])
  .option('--source-ip <address>', 'where the connection comes from (default: 127.0.0.1)')
  .option('--port <port>', 'of the workload (default: all)')
  .option(...home)
  .option(...output)
  .addHelpText('after', '\nExample: mizzen authz check reviews-v1 --from default/bookinfo-productpage --path /reviews/0')
  .action(async (proxy: string, options) => (await import('./commands/authz.ts')).check(proxy, options));

program
  .command('logs <name>')
  .description('the output of a workload; with --proxy the access log and messages of its sidecar')
  .option('--proxy', 'of its sidecar')
  .option('-f, --follow', 'go on as it grows')
  .option('--tail <lines>', 'how many lines from the end', '200')
  .option(...home)
  .option(...output)
  .action(async (name: string, options) => (await import('./commands/logs.ts')).logs(name, options));

program
  .command('kubeconfig')
  .description("print a kubeconfig for this mesh's API: for its owner, or with --user and --role for somebody who may do less")
  .option('--user <name>', 'for whom')
  .option('--role <role>', 'viewer, operator or admin (default: viewer)')
  .option('--allowed-namespace <name>', 'in this namespace only, may be repeated', collect, [])
  .option('--duration <seconds>', 'how long it is good for', '86400')
  .option(...home)
  .option(...output)
  .action(async (options) => (await import('./commands/access.ts')).kubeconfig(options));

program
  .command('token <serviceaccount>')
  .description('print a bootstrap token for a workload of this service account')
  .option(...namespace)
  .option('--duration <seconds>', 'how long it is valid', '3600')
  .option('--once', 'it is used up by the first certificate that is issued for it')
  .option('--workload <name>', 'create the WorkloadGroup that allows the service account to be this workload')
  .option('--label <name=value>', 'a label of the workload; may be repeated', collect, [])
  .option('--address <cidr>', 'addresses that the workload may register, if it is seen at others; may be repeated', collect, [])
  .option('--gateway', 'the workload is a gateway')
  .option(...home)
  .option(...output)
  .action(async (serviceAccount: string, options) => (await import('./commands/access.ts')).token(serviceAccount, options));

program
  .command('api-resources')
  .description('list the kinds that are taken')
  .option(...output)
  .action(async (options) => (await import('./commands/resources.ts')).apiResources(options));

program
  .command('version')
  .description('the versions of this program and of the control plane')
  .option(...home)
  .option(...output)
  .action(async (options) => (await import('./commands/access.ts')).version(options));

/** Commands that keep running, whatever becomes of their output. */
const isService = ['up', 'control', 'proxy', 'broker', 'run', 'agent'].includes(process.argv[2] ?? '');
process.stdout.on('error', (error: NodeJS.ErrnoException) => {
  if (isService) return;
  if (error.code !== 'EPIPE') throw error;
  // The reader of the output has gone (`mizzen get pods | head`).
  process.exit(141);
});
process.stderr.on('error', () => {});

try {
  await program.parseAsync();
} catch (error) {
  process.stderr.write(`error: ${printableLines(messageOf(error))}\n`);
  process.exitCode = 1;
  // Whatever is still open (a listener, a timer) must not keep a command alive that has failed.
  setTimeout(() => process.exit(1), 100).unref();
}
