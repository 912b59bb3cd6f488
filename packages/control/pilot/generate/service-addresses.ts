import type { ProxyView } from '../proxy-view.ts';
import type { Service } from '../registry/service.ts';
import type { MeshSnapshot } from '../snapshot.ts';

/** The addresses by which one proxy knows a service: its own, or those that the mesh gave it; IPv6 only where the proxy has it. */
export function serviceAddresses(service: Service, view: ProxyView, snapshot: MeshSnapshot): readonly string[] {
  const hasIPv6 = view.capture?.hasIPv6 === true;
  if (service.addresses.length > 0) return service.addresses.filter((address) => hasIPv6 || !address.includes(':'));
  const auto = snapshot.autoAddresses.get(service.hostname);
  if (auto === undefined) return [];
  return hasIPv6 ? [auto.ipv4, auto.ipv6] : [auto.ipv4];
}
