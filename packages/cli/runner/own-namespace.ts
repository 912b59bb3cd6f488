import { type ChildProcess, fork } from 'node:child_process';
import type dgram from 'node:dgram';
import { once } from 'node:events';
import type net from 'node:net';
import { errorBoundary, MizzenError } from '@mizzen/common';
import { applyCapture } from '../capture/apply-capture.ts';
import type { CaptureSettings } from '../capture/capture-settings.ts';
import { inNamespace, ipCommands, namespacesWithPrefix, removeNamespace } from '../lab/network-namespace.ts';
import { isAlive } from '../process-alive.ts';
import { mizzenCommand } from './program.ts';

const boundary = errorBoundary('runner');

/**
 * A network namespace for one application whose sidecar stays outside, on this machine. The sidecar's sockets for captured traffic are
 * opened inside and handed out: what the kernel redirects in there comes to a process out here, which can reach everything that this
 * machine can. Nothing is forwarded or translated for it. A cable leads in, by which the sidecar calls the application.
 */
export interface OwnNamespace {
  readonly name: string;
  /** Of the application, seen from this machine. */
  readonly address: string;
  readonly sockets: HandedOutSockets;
  close(): Promise<void>;
}

export interface HandedOutSockets {
  /** TCP for what is sent, listening. */
  readonly outbound: readonly net.Server[];
  readonly dnsTcp: readonly net.Server[];
  readonly dnsUdp: readonly dgram.Socket[];
}

/** What the helper inside says: each with its socket. */
export type SocketMessage = { readonly kind: 'outbound' | 'dnsTcp' | 'dnsUdp' } | { readonly kind: 'all' };

const prefix = 'mzr-';
const cable = 'eth0';

/** Throws `no-privileges`, `no-iproute2`, `lab-failed`, `capture-failed`. */
export async function makeOwnNamespace(capture: CaptureSettings): Promise<OwnNamespace> {
  await removeDeadNamespaces();
  const name = `${prefix}${process.pid}`;
  const outside = `mzr${process.pid}`;
  // Four addresses of 10.192.0.0/13 for each process number: two of them for the ends of the cable.
  const slot = (process.pid * 4) % 2 ** 19;
  const addressOf = (offset: number) => `10.${192 + (slot >> 16)}.${(slot >> 8) & 0xff}.${(slot & 0xff) + offset}`;
  const [gateway, address] = [addressOf(1), addressOf(2)];
  await ipCommands([`netns add ${name}`]);
  const close = () => removeNamespace(name, outside);
  try {
    await ipCommands([`link add ${outside} type veth peer name ${cable} netns ${name}`, `addr add ${gateway}/30 dev ${outside}`, `link set ${outside} up`]);
    await ipCommands(['link set lo up', `addr add ${address}/30 dev ${cable}`, `link set ${cable} up`, `route add default via ${gateway}`], name);
    await applyCapture(capture, { engine: 'nftables', namespace: name });
    await inNamespace(name, ['sh', '-c', `echo 1 > /proc/sys/net/ipv4/conf/${cable}/route_localnet`]);
    // The application may listen on loopback only, as it would without a namespace: what comes by the cable is brought there.
    const rules = `table inet mizzen_local {\n  chain prerouting {\n    type nat hook prerouting priority -100; policy accept;\n    iifname "${cable}" ip daddr ${address} meta l4proto tcp dnat ip to 127.0.0.1\n  }\n}\n`;
    await inNamespace(name, ['nft', '-f', '-'], rules);
    return { name, address, sockets: await handOut(name, capture), close };
  } catch (error) {
    await close().catch(() => {});
    throw error;
  }
}

/** Starts the helper inside, which opens the sockets, hands them out and ends. */
async function handOut(namespace: string, { outboundPort, dnsPort }: CaptureSettings): Promise<HandedOutSockets> {
  const [node, file] = mizzenCommand as [string, string];
  const child: ChildProcess = boundary.own(
    fork(file, ['hold-sockets', String(outboundPort), String(dnsPort ?? 0)], {
      execPath: 'ip',
      execArgv: ['netns', 'exec', namespace, node],
      stdio: ['ignore', 'ignore', 'inherit', 'ipc'],
    }),
    () => child.kill(),
  );
  const outbound: net.Server[] = [];
  const dnsTcp: net.Server[] = [];
  const dnsUdp: dgram.Socket[] = [];
  child.on('message', (message: SocketMessage, handle) => {
    if (message.kind === 'outbound') outbound.push(handle as net.Server);
    else if (message.kind === 'dnsTcp') dnsTcp.push(handle as net.Server);
    else if (message.kind === 'dnsUdp') dnsUdp.push(handle as dgram.Socket);
    else child.disconnect();
  });
  const [code] = (await once(child, 'exit')) as [number | null];
  if (code !== 0 || outbound.length === 0) throw new MizzenError('capture-failed', `the sockets of the namespace could not be opened (exit code ${code})`);
  return { outbound, dnsTcp, dnsUdp };
}

/** Removes namespaces of runs that were killed. Returns how many there were. */
export async function removeDeadNamespaces(): Promise<number> {
  let count = 0;
  for (const name of await namespacesWithPrefix(prefix)) {
    const pid = Number(name.slice(prefix.length));
    if (!Number.isInteger(pid) || isAlive(pid)) continue;
    await removeNamespace(name, `mzr${pid}`);
    count++;
  }
  return count;
}
