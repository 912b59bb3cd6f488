import { createHash } from 'node:crypto';
import { mkdirSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { type Logger, MizzenError } from '@mizzen/common';
import { type DnsRelay, startDnsRelay } from '@mizzen/proxy/dns-relay';
import { applyCapture } from '../capture/apply-capture.ts';
import type { CaptureSettings } from '../capture/capture-settings.ts';
import { runProgram } from '../capture/run-program.ts';
import { isAlive } from '../process-alive.ts';
import { type LabHost, type LabNetwork, readHosts, removeHost, removeLab, writeHost, writeLab } from './lab-state.ts';
import { inNamespace, ipCommands, namespaceExists, namespacesWithPrefix, removeLink, removeNamespace } from './network-namespace.ts';
import { applyPartitions } from './partitions.ts';

/**
 * A network of hosts on one machine: each has a network namespace, an address, a host name and a resolver of its own, and a cable to a
 * bridge. What runs on them sees a machine for itself. Everything in the kernel carries the lab's id, so that what a killed run has left
 * is found and removed by the next.
 */
export interface LabOptions {
  readonly home: string;
  readonly xdsPort: number;
  /** What every packet between hosts takes longer, one way, in milliseconds. */
  readonly latencyMs: number;
  /** How many of a hundred packets are lost. */
  readonly lossPercent: number;
  readonly logger: Logger;
}

/** What a host's processes run as. */
export type Role = 'application' | 'sidecar';

const maxHosts = 253;
const cable = 'eth0';
export const sidecarId = 1337;

export class Lab {
  readonly home: string;
  readonly network: LabNetwork;
  readonly #relay: DnsRelay | undefined;

  private constructor(home: string, network: LabNetwork, relay: DnsRelay | undefined) {
    this.home = home;
    this.network = network;
    this.#relay = relay;
  }

  /** Makes the bridge; removes what an earlier run of the same home has left. Throws `no-privileges`, `no-iproute2`, `lab-failed`. */
  static async create(options: LabOptions): Promise<Lab> {
    const { home, logger } = options;
    await removeLeftovers(home);
    const id = idOf(home);
    const prefix = await freePrefix(id);
    const hasIPv6 = readFirst('/proc/sys/net/ipv6/conf/all/disable_ipv6') === '0';
    const network: LabNetwork = {
      id,
      bridge: `mz${id}`,
      prefix,
      prefixIpv6: hasIPv6 ? `fd6d:7a:${id.slice(0, 4)}::` : undefined,
      gatewayAddress: `${prefix}.1`,
      xdsPort: options.xdsPort,
      latencyMs: options.latencyMs,
      lossPercent: options.lossPercent,
    };
    await ipCommands([
      `link add ${network.bridge} type bridge`,
      `addr add ${network.gatewayAddress}/24 dev ${network.bridge}`,
      ...(network.prefixIpv6 === undefined ? [] : [`addr add ${network.prefixIpv6}1/64 dev ${network.bridge} nodad`]),
      // For people who wonder, and for `mizzen lab clean --all`.
      `link set ${network.bridge} alias mizzen-lab,${process.pid},${home.replace(/\s/g, '?').slice(0, 200)}`,
      `link set ${network.bridge} up`,
    ]);
    try {
      await checkDegradation(network);
      writeLab(home, network);
      // Names outside the mesh are resolved as on this machine: hosts ask here, since its resolvers may be out of their reach.
      const relay = await startDnsRelay({ address: network.gatewayAddress, port: 53, localDomains: ['cluster.local'], logger });
      return new Lab(home, network, relay);
    } catch (error) {
      await removeLeftovers(home);
      throw error;
    }
  }

  /** The lab that another process has made. */
  static join(home: string, network: LabNetwork): Lab {
    return new Lab(home, network, undefined);
  }

  get hasIPv6(): boolean {
    return this.network.prefixIpv6 !== undefined;
  }

  /** A new host. `capture`: what of its traffic is redirected to its sidecar. */
  async addHost(name: string, workload: string, namespace: string, capture: CaptureSettings | undefined): Promise<LabHost> {
    const { id, bridge, prefix, prefixIpv6, gatewayAddress } = this.network;
    const netns = `mz-${id}-${name}`;
    if (namespaceExists(netns)) {
      const known = readHosts(this.home).find((host) => host.name === name);
      if (known !== undefined && isAlive(known.owner))
        throw new MizzenError('host-exists', `there is a host of the name ${name} already in this lab. Choose another with --name.`);
      await removeNamespace(netns); // left by a run that was killed
    }
    await ipCommands([`netns add ${netns}`]);
    try {
      const number = await this.#plugIn(netns, name);
      const host: LabHost = {
        name,
        workload,
        namespace: netns,
        number,
        address: `${prefix}.${number}`,
        addressIpv6: prefixIpv6 === undefined ? undefined : `${prefixIpv6}${number.toString(16)}`,
        owner: process.pid,
        kind: 'inside',
      };
      await ipCommands([`link set mz${id}.${number} master ${bridge} up`]);
      await ipCommands(
        [
          'link set lo up',
          `addr add ${host.address}/24 dev ${cable}`,
          ...(host.addressIpv6 === undefined ? [] : [`addr add ${host.addressIpv6}/64 dev ${cable} nodad`]),
          `link set ${cable} up`,
          // Addresses that only the mesh knows have to lead somewhere before they can be redirected.
          `route add default via ${gatewayAddress}`,
          ...(prefixIpv6 === undefined ? [] : [`route add default via ${prefixIpv6}1`]),
        ],
        netns,
      );
      if (capture !== undefined) await applyCapture(capture, { engine: 'nftables', namespace: netns });
      await this.#degrade(netns);
      this.#writeFiles(host, namespace);
      writeHost(this.home, host);
      await applyPartitions(this.home, this.network, [host]);
      return host;
    } catch (error) {
      await removeNamespace(netns).catch(() => {});
      throw error;
    }
  }

  /** Somebody who lives on the machine itself and can be partitioned from hosts all the same. */
  addOutside(name: string, workload: string): void {
    writeHost(this.home, {
      name,
      workload,
      namespace: '',
      number: 1,
      address: this.network.gatewayAddress,
      addressIpv6: undefined,
      owner: process.pid,
      kind: 'outside',
    });
  }

  async removeHost(host: LabHost): Promise<void> {
    await removeNamespace(host.namespace, `mz${this.network.id}.${host.number}`);
    removeHost(this.home, host.name);
  }

  /** The command that runs `command` on a host. It replaces itself: the process that is started is the one that runs. */
  command(host: LabHost, command: readonly string[], role: Role): string[] {
    const files = this.#files(host);
    const setUp = 'echo "$1" > /proc/sys/kernel/hostname; mount --bind "$2" /etc/resolv.conf; mount --bind "$3" /etc/hosts; shift 3; exec "$@"';
    // The sidecar's user may read its configuration and this program, wherever they lie, and is nobody otherwise.
    const asSidecar = [
      'setpriv',
      '--reuid',
      String(sidecarId),
      '--regid',
      String(sidecarId),
      '--clear-groups',
      '--inh-caps=-all,+dac_read_search',
      '--ambient-caps=-all,+dac_read_search',
      '--no-new-privs',
      '--',
    ];
    return [
      ...['ip', 'netns', 'exec', host.namespace, 'unshare', '--uts', '--', 'sh', '-ec', setUp, 'sh', host.name, files.resolver, files.hosts],
      ...(role === 'sidecar' ? asSidecar : []),
      ...command,
    ];
  }

  async close(): Promise<void> {
    await this.#relay?.close();
    await removeLeftovers(this.home);
  }

  /** The first number whose cable nobody else has made: making it is what takes it. */
  async #plugIn(netns: string, name: string): Promise<number> {
    const { id } = this.network;
    for (let number = 2 + readHosts(this.home).length; number <= maxHosts + 1; number++) {
      // An address always has the same hardware address: neighbours that knew the host before this one do not look for it elsewhere.
      const hardware = `02:6d:7a:${id.slice(0, 2)}:${id.slice(2, 4)}:${number.toString(16).padStart(2, '0')}`;
      const result = await runProgram(['ip', 'link', 'add', `mz${id}.${number}`, 'type', 'veth', 'peer', 'name', cable, 'address', hardware, 'netns', netns]);
      if (result.code === 0) return number;
      if (!/File exists/.test(result.error)) throw new MizzenError('lab-failed', `no cable could be made for ${name}: ${result.error.trim()}`);
    }
    throw new MizzenError('lab-full', `a lab has at most ${maxHosts} hosts`);
  }

  async #degrade(netns: string): Promise<void> {
    const { lossPercent } = this.network;
    if (isGoodNetwork(this.network)) return;
    const result = await runProgram(['tc', '-n', netns, ...netem(cable, this.network)]);
    if (result.code === 0) return;
    // No netem (see checkDegradation): what it would lose, a rule can drop.
    await inNamespace(
      netns,
      ['nft', '-f', '-'],
      `table inet mizzen_loss {\n  chain output {\n    type filter hook output priority 0; policy accept;\n    oifname "${cable}" numgen random mod 10000 < ${Math.round(lossPercent * 100)} drop\n  }\n}\n`,
    );
  }

  #files(host: LabHost): { readonly resolver: string; readonly hosts: string } {
    return { resolver: join(this.home, 'lab/etc', host.name, 'resolv.conf'), hosts: join(this.home, 'lab/etc', host.name, 'hosts') };
  }

  #writeFiles(host: LabHost, namespace: string): void {
    const files = this.#files(host);
    mkdirSync(join(files.hosts, '..'), { recursive: true, mode: 0o755 });
    writeFileSync(
      files.resolver,
      `# made by mizzen: this host of the lab asks its sidecar, or the machine itself\nnameserver ${this.network.gatewayAddress}\nsearch ${namespace}.svc.cluster.local svc.cluster.local cluster.local\noptions ndots:5\n`,
      { mode: 0o644 },
    );
    const own = [host.address, host.addressIpv6].filter((address) => address !== undefined).map((address) => `${address} ${host.name}\n`);
    writeFileSync(files.hosts, `127.0.0.1 localhost\n::1 localhost\n${own.join('')}`, { mode: 0o644 });
  }
}

const isGoodNetwork = ({ latencyMs, lossPercent }: LabNetwork) => latencyMs === 0 && lossPercent === 0;

function netem(device: string, { latencyMs, lossPercent }: LabNetwork): string[] {
  const settings = [...(latencyMs > 0 ? ['delay', `${latencyMs}ms`] : []), ...(lossPercent > 0 ? ['loss', `${lossPercent}%`] : [])];
  return ['qdisc', 'add', 'dev', device, 'root', 'netem', ...settings];
}

/** Finds out before any host is made whether the network can be made as bad as it is wanted. */
async function checkDegradation(network: LabNetwork): Promise<void> {
  if (isGoodNetwork(network)) return;
  const result = await runProgram(['tc', ...netem(network.bridge, network)]);
  if (result.code === 0) return void (await runProgram(['tc', 'qdisc', 'del', 'dev', network.bridge, 'root']));
  const isUnknown = result.code === undefined || /qdisc kind is unknown|No such file or directory/.test(result.error);
  if (!isUnknown) throw new MizzenError('lab-failed', `tc says: ${result.error.trim()}`);
  if (network.latencyMs > 0)
    throw new MizzenError(
      'no-netem',
      'packets cannot be delayed here: the kernel has no netem (CONFIG_NET_SCH_NETEM), or tc is missing. Leave --latency out; --loss works without.',
    );
}

/** Removes what a lab of this home has left in the kernel and on disk, processes included. Returns how many hosts that were. */
export async function removeLeftovers(home: string): Promise<number> {
  const count = await removeFromKernel(idOf(home));
  removeLab(home);
  return count;
}

/** The same for every lab of this machine whose runner is gone, also those whose home is. */
export async function removeAllLeftovers(): Promise<number> {
  const { output } = await runProgram(['ip', '-d', 'link', 'show', 'type', 'bridge']);
  let count = 0;
  let id = '';
  for (const line of output.split('\n')) {
    id = /^\d+: mz([0-9a-f]{6}):/.exec(line)?.[1] ?? id;
    const [, pid, home] = /alias mizzen-lab,(\d+),(\S+)/.exec(line) ?? [];
    if (home === undefined || isAlive(Number(pid))) continue;
    count += await removeFromKernel(id);
    removeLab(home);
  }
  return count;
}

async function removeFromKernel(id: string): Promise<number> {
  const left = await namespacesWithPrefix(`mz-${id}-`);
  const cables = (await runProgram(['ip', '-br', 'link'])).output.match(new RegExp(`^mz${id}\\.\\d+`, 'gm')) ?? [];
  await Promise.all(left.map((namespace) => removeNamespace(namespace)));
  for (const end of cables) await removeLink(end);
  const bridge = await runProgram(['ip', 'link', 'show', `mz${id}`]);
  if (bridge.code === 0) await ipCommands([`link delete mz${id}`]);
  return left.length;
}

/** Six hexadecimal digits that follow from the mesh's home. */
function idOf(home: string): string {
  return createHash('sha256').update(home).digest('hex').slice(0, 6);
}

/** A network of 10/8 that no address or route of this machine has. */
async function freePrefix(id: string): Promise<string> {
  const [addresses, routes] = await Promise.all([runProgram(['ip', '-4', 'addr', 'show']), runProgram(['ip', '-4', 'route', 'show'])]);
  const known = addresses.output + routes.output;
  const start = Number.parseInt(id, 16);
  for (let i = 0; i < 4096; i++) {
    const slot = (start + i) % (56 * 256);
    const prefix = `10.${200 + Math.floor(slot / 256)}.${slot % 256}`;
    if (!known.includes(` ${prefix}.`) && !known.includes(` 10.${200 + Math.floor(slot / 256)}.0.0/16`)) return prefix;
  }
  throw new MizzenError('no-free-network', 'no free network was found between 10.200.0.0 and 10.255.255.0');
}

function readFirst(path: string): string {
  try {
    return readFileSync(path, 'utf8').trim();
  } catch {
    return ''; // a kernel without it
  }
}
