import assert from 'node:assert/strict';
import { once } from 'node:events';
import { after, before, describe, it } from 'node:test';
import { applyCapture, type CaptureEngine, removeCapture } from '../packages/cli/capture/apply-capture.ts';
import { type CaptureSettings, defaultCapture } from '../packages/cli/capture/capture-settings.ts';
import { mizzen, notPrivileged, program } from './support/lab.ts';
import { skipWithout } from './support/requirements.ts';

/**
 * Two hosts with a cable between them: `inside`, whose traffic is captured, and `outside`. What would be the sidecar is a program that
 * says where each connection was going.
 */
const inside = `mzt-in-${process.pid}`;
const outside = `mzt-out-${process.pid}`;
const [insideAddress, outsideAddress] = ['10.199.7.1', '10.199.7.2'];

/** Listens where a sidecar would; every connection is told `captured by PORT, was going to ADDRESS:PORT`. As user 1337 it calls out too. */
const sidecar = `
import socket, struct, threading, socketserver
class Handler(socketserver.BaseRequestHandler):
    def handle(self):
        s = self.request
        six = s.family == socket.AF_INET6
        try:
            raw = s.getsockopt(41 if six else 0, 80, 28)
            port = struct.unpack('!H', raw[2:4])[0]
            address = socket.inet_ntop(s.family, raw[8:24] if six else raw[4:8])
        except OSError:
            address, port = s.getsockname()[:2]
        s.sendall(('%d %s %d' % (self.server.server_address[1], address, port)).encode())
class Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
class Server6(Server):
    address_family = socket.AF_INET6
    def server_bind(self):
        self.socket.setsockopt(41, 26, 1)
        super().server_bind()
for family, any in ((Server, '0.0.0.0'), (Server6, '::')):
    for port in (15001, 15006, 15053):
        threading.Thread(target=family((any, port), Handler).serve_forever).start()
print('listening', flush=True)
`;

/** Whoever listens for real. */
const server = `
import socketserver, sys, threading
class Handler(socketserver.BaseRequestHandler):
    def handle(self): self.request.sendall(b'real %d' % self.server.server_address[1])
class Server(socketserver.ThreadingTCPServer): allow_reuse_address = True
for port in map(int, sys.argv[1:]):
    threading.Thread(target=Server(('0.0.0.0', port), Handler).serve_forever).start()
print('listening', flush=True)
`;

const call = `
import socket, sys
try:
    s = socket.create_connection((sys.argv[1], int(sys.argv[2])), 2)
    s.settimeout(2)
    print(s.recv(100).decode())
except OSError as e: print('failed')
`;

describe('capture', { skip: notPrivileged || skipWithout('ip', 'nft', 'iptables', 'python3') }, () => {
  const ends: (() => void)[] = [];
  const start = async (namespace: string, script: string, args: readonly string[], as: readonly string[] = []) => {
    const { spawn } = await import('node:child_process');
    const child = spawn('ip', ['netns', 'exec', namespace, ...as, 'python3', '-c', script, ...args], { stdio: ['ignore', 'pipe', 'inherit'] });
    ends.push(() => child.kill('SIGKILL'));
    await once(child.stdout, 'data');
  };
  const asUser = (uid: number, gid = uid) => ['setpriv', '--reuid', String(uid), '--regid', String(gid), '--clear-groups', '--'];
  const connect = async (from: string, address: string, port: number, as: readonly string[] = []) => {
    const result = await program(['ip', 'netns', 'exec', from, ...as, 'python3', '-c', call, address, String(port)]);
    return result.output.trim();
  };
  const apply = (engine: CaptureEngine, settings: Partial<CaptureSettings> = {}) =>
    applyCapture({ ...defaultCapture, ...settings }, { engine, namespace: inside });
  const remove = (engine: CaptureEngine) => removeCapture('mizzen', { engine, namespace: inside });
  const rules = async () => {
    const [nft, ...tables] = await Promise.all(
      [['nft', 'list', 'ruleset'], ...['iptables-save', 'ip6tables-save'].map((save) => [save, '-t', 'nat'])].map((command) =>
        program(['ip', 'netns', 'exec', inside, ...command]),
      ),
    );
    // Without the time of day, and without what has been counted.
    const plain = (text: string) =>
      text
        .replace(/^#.*\n/gm, '')
        .replace(/\[\d+:\d+\]/g, '')
        .replace(/counter packets \d+ bytes \d+/g, 'counter');
    return { nft: plain(nft!.output), iptables: plain(tables.map((table) => table.output).join('')) };
  };

  before(async () => {
    const commands = [`netns add ${inside}`, `netns add ${outside}`, `link add mzt0 netns ${inside} type veth peer name mzt1 netns ${outside}`];
    const made = await program(['ip', '-batch', '-'], { input: `${commands.join('\n')}\n` });
    assert.equal(made.code, 0, made.error);
    for (const [namespace, device, address, number] of [
      [inside, 'mzt0', insideAddress, 1],
      [outside, 'mzt1', outsideAddress, 2],
    ] as const) {
      const setUp = ['link set lo up', `addr add ${address}/24 dev ${device}`, `addr add fd00:199::${number}/64 dev ${device} nodad`, `link set ${device} up`];
      const result = await program(['ip', '-n', namespace, '-batch', '-'], { input: `${setUp.join('\n')}\n` });
      assert.equal(result.code, 0, result.error);
    }
    await start(inside, sidecar, [], asUser(1337));
    await start(inside, server, ['8080', '15021'], asUser(2000));
    await start(outside, server, ['80', '81', '53', '8443', '15001']);
  });
  after(async () => {
    for (const end of ends) end();
    for (const namespace of [inside, outside]) await program(['ip', 'netns', 'delete', namespace]);
  });

  for (const engine of ['nftables', 'iptables'] as const) {
    describe(engine, () => {
      after(() => remove(engine));

      it('redirects what leaves, what comes and what asks for names, by IPv4 and IPv6', async () => {
        await apply(engine);
        assert.equal(await connect(inside, outsideAddress, 80, asUser(2000)), `15001 ${outsideAddress} 80`);
        assert.equal(await connect(inside, 'fd00:199::2', 80, asUser(2000)), '15001 fd00:199::2 80');
        assert.equal(await connect(outside, insideAddress, 8080), `15006 ${insideAddress} 8080`);
        assert.equal(await connect(outside, 'fd00:199::1', 8080), '15006 fd00:199::1 8080');
        assert.equal(await connect(inside, outsideAddress, 53, asUser(2000)), `15053 ${outsideAddress} 53`);
        assert.equal(await connect(outside, insideAddress, 15_021), 'real 15021', "the sidecar's public ports are left alone");
      });

      it('leaves the sidecar alone, by its user and by its group, and never sends it to itself', async () => {
        assert.equal(await connect(inside, outsideAddress, 80, asUser(1337)), 'real 80');
        assert.equal(await connect(inside, outsideAddress, 80, asUser(0, 1337)), 'real 80');
        assert.equal(await connect(inside, outsideAddress, 15_001, asUser(1337)), 'real 15001');
      });

      it('a service that calls itself by way of its sidecar comes in as others do; within the host nothing is captured', async () => {
        assert.equal(await connect(inside, insideAddress, 8080, asUser(1337)), `15006 ${insideAddress} 8080`);
        assert.equal(await connect(inside, '127.0.0.1', 8080, asUser(1337)), 'real 8080');
        assert.equal(await connect(inside, insideAddress, 8080, asUser(2000)), 'real 8080');
        assert.equal(await connect(inside, '127.0.0.1', 8080, asUser(2000)), 'real 8080');
      });

      it('may be applied again and with other settings: there is one set of rules', async () => {
        await apply(engine);
        const once = await rules();
        await apply(engine);
        assert.deepEqual(await rules(), once);
        await apply(engine, {
          excludeOutboundPorts: [81],
          excludeInboundPorts: [...defaultCapture.excludeInboundPorts, 8080],
          excludeOutboundRanges: ['10.199.7.2/32'],
          includeOutboundPorts: [8443],
          excludeUids: [3000],
          excludeGids: [4000],
        });
        assert.equal(await connect(inside, outsideAddress, 81, asUser(2000)), 'real 81');
        assert.equal(await connect(outside, insideAddress, 8080), 'real 8080');
        assert.equal(await connect(inside, outsideAddress, 80, asUser(2000)), 'real 80', 'an excluded range');
        assert.equal(await connect(inside, 'fd00:199::2', 80, asUser(3000)), 'failed', 'an excluded user meets what is really there: nobody');
        await apply(engine, { excludeUids: [3000], excludeGids: [4000] });
        assert.equal(await connect(inside, outsideAddress, 80, asUser(3000)), 'real 80');
        assert.equal(await connect(inside, outsideAddress, 80, asUser(2000, 4000)), 'real 80');
        await apply(engine, { includeOutboundRanges: ['192.0.2.0/24'], includeInboundPorts: [9999], includeOutboundPorts: [8443] });
        assert.equal(await connect(inside, outsideAddress, 80, asUser(2000)), 'real 80', 'not in the included range');
        assert.equal(await connect(inside, outsideAddress, 8443, asUser(2000)), `15001 ${outsideAddress} 8443`, 'an included port');
        assert.equal(await connect(outside, insideAddress, 8080), 'real 8080');
        await apply(engine, { only: { kind: 'group', gid: 5000 }, inboundPort: undefined });
        assert.equal(await connect(inside, outsideAddress, 80, asUser(2000, 5000)), `15001 ${outsideAddress} 80`);
        assert.equal(await connect(inside, outsideAddress, 80, asUser(2000)), 'real 80');
      });

      it('is removed without a trace, and removing what is not there is no error', async () => {
        await apply(engine);
        await remove(engine);
        await remove(engine);
        const left = await rules();
        assert.doesNotMatch(left.nft, /mizzen/i);
        assert.doesNotMatch(left.iptables, /mizzen/i);
        assert.equal(await connect(inside, outsideAddress, 80, asUser(2000)), 'real 80');
      });
    });
  }

  it('rules of which one is refused change nothing', async () => {
    await apply('nftables');
    const before = await rules();
    await assert.rejects(apply('nftables', { excludeInterfaces: ['a" ; drop'] }), /none of them is in effect/);
    assert.deepEqual(await rules(), before);
    await remove('nftables');
  });

  it('the command says what it does, prints rules without applying them, and refuses to fight with others', async () => {
    const run = (...args: string[]) => program(mizzen(['capture', '--netns', inside, ...args]));
    const dry = await run('--dry-run', '--annotation', 'traffic.sidecar.istio.io/excludeOutboundPorts=3306');
    assert.match(dry.output, /table inet mizzen[\s\S]*tcp dport \{ 3306 \} return/);
    assert.match((await run('--dry-run', '--engine', 'iptables')).output, /:MIZZEN_OUT - \[0:0\][\s\S]*# ip6tables-restore/);
    assert.doesNotMatch((await rules()).nft, /mizzen/);
    const applied = await run();
    assert.equal(applied.code, 0, applied.error);
    assert.match(applied.output, /captured \(nftables\): TCP that leaves goes to 15001/);
    const fight = await run('--engine', 'iptables');
    assert.match(fight.error, /table inet mizzen .*mizzen capture --remove/);
    assert.equal((await run('--remove')).code, 0);
    const istio = ['*nat', ':ISTIO_OUTPUT - [0:0]', '-A OUTPUT -j ISTIO_OUTPUT', 'COMMIT', ''].join('\n');
    await program(['ip', 'netns', 'exec', inside, 'iptables-restore', '--noflush'], { input: istio });
    const inTheWay = await run();
    assert.match(inTheWay.error, /chain ISTIO_OUTPUT \(Istio's/);
    assert.equal(inTheWay.code, 1);
  });

  it('without the program, without privileges, with nonsense: a sentence each', async () => {
    const noNft = await program(mizzen(['capture', '--netns', inside, '--engine', 'neither']));
    assert.match(noNft.error, /--engine neither is not known: nftables or iptables/);
    const [node, ...args] = mizzen(['capture']);
    const hidden = await program(['unshare', '--mount', '--net', 'sh', '-c', 'mount -t tmpfs none /usr/sbin; exec "$@"', 'sh', node!, ...args]);
    assert.match(hidden.error, /the program nft was not found\. Install it .*--engine iptables/);
    const refused = await program(['unshare', '--net', 'setpriv', '--bounding-set=-all', '--inh-caps=-all', '--', node!, ...args]);
    assert.match(refused.error, /needs root \(CAP_NET_ADMIN\)/);
    for (const [option, value, problem] of [
      ['--exclude-inbound-ports', '80,x', /"x" is no port/],
      ['--exclude-outbound-ranges', '10.0.0.0/33', /is no address range/],
      ['--exclude-uids', 'root', /is no id/],
      ['--exclude-interfaces', 'a;b', /is no name of a network interface/],
      ['--annotation', 'traffic.sidecar.istio.io/unknown=1', /is not known/],
    ] as const)
      assert.match((await program(mizzen(['capture', '--dry-run', option, value]))).error, problem);
  });

  it('nothing of this has touched the machine itself', async () => {
    const { output } = await program(['nft', 'list', 'tables']);
    assert.doesNotMatch(output, /inet mizzen$/m);
  });
});
