import { type LabHost, type LabNetwork, type Partition, readHosts, readPartitions } from './lab-state.ts';
import { inNamespace } from './network-namespace.ts';

/** The name by which the control plane can be cut off. */
export const controlName = 'control';

/** Puts the partitions in effect on these hosts; on those that none concerns, the rules go. */
export async function applyPartitions(home: string, network: LabNetwork, hosts: readonly LabHost[]): Promise<void> {
  const partitions = readPartitions(home);
  const all = readHosts(home);
  await Promise.all(
    hosts
      .filter((host) => host.kind === 'inside')
      .map((host) => inNamespace(host.namespace, ['nft', '-f', '-'], partitionRules(host, partitions, all, network))),
  );
}

/** Whether a partition's name means this host: its own name, or its workload's. */
export function isNamed(host: LabHost, name: string): boolean {
  return host.name === name || host.workload === name;
}

/** Packets from and to those on the other side are dropped, silently, as a broken cable would. */
export function partitionRules(host: LabHost, partitions: readonly Partition[], hosts: readonly LabHost[], network: LabNetwork): string {
  const others = partitions.flatMap(([a, b]) => [...(isNamed(host, a) ? [b] : []), ...(isNamed(host, b) ? [a] : [])]);
  const input: string[] = [];
  const output: string[] = [];
  const { gatewayAddress, xdsPort } = network;
  for (const name of others) {
    if (name === controlName) {
      input.push(`ip saddr ${gatewayAddress} tcp sport ${xdsPort} drop`);
      output.push(`ip daddr ${gatewayAddress} tcp dport ${xdsPort} drop`);
      continue;
    }
    for (const other of hosts.filter((candidate) => isNamed(candidate, name) && candidate.name !== host.name)) {
      if (other.kind === 'outside') {
        // It shares its address with the control plane, which stays.
        input.push(`ip saddr ${gatewayAddress} tcp sport != ${xdsPort} drop`);
        output.push(`ip daddr ${gatewayAddress} tcp dport != ${xdsPort} drop`);
        continue;
      }
      input.push(`ip saddr ${other.address} drop`);
      output.push(`ip daddr ${other.address} drop`);
      if (other.addressIpv6 === undefined) continue;
      input.push(`ip6 saddr ${other.addressIpv6} drop`);
      output.push(`ip6 daddr ${other.addressIpv6} drop`);
    }
  }
  const chain = (hook: 'input' | 'output', rules: readonly string[]) =>
    `  chain ${hook} {\n    type filter hook ${hook} priority -150; policy accept;\n${[...new Set(rules)].map((rule) => `    ${rule}\n`).join('')}  }\n`;
  const table = 'table inet mizzen_partition';
  return `${table} {}\ndelete ${table}\n${input.length === 0 ? '' : `${table} {\n${chain('input', input)}${chain('output', output)}}\n`}`;
}
