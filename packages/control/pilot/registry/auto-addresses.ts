import { createHash } from 'node:crypto';
import type { Service } from './service.ts';

/** The two addresses by which a service without one of its own is known to sidecars. */
export interface AutoAddress {
  readonly ipv4: string;
  readonly ipv6: string;
}

/** 240.240.0.0/16 (class E, which nobody routes) and 2001:2::/48 (RFC 5180, benchmarking): the ranges that Istio takes for the same. */
const slots = 65_534;

/**
 * Gives every service that has no address one that exists inside the mesh only: the sidecar's DNS proxy answers with it, the sidecar's
 * listeners know it. It follows from the name, so that every replica of the control plane gives the same one, and a service keeps its own
 * when others come and go (as long as no two names fall on one slot).
 */
export function autoAddresses(services: readonly Service[]): ReadonlyMap<string, AutoAddress> {
  const wanting = services.filter(needsAddress).map((service) => service.hostname);
  const taken = new Map<number, string>();
  for (const hostname of [...new Set(wanting)].sort()) {
    const hash = createHash('sha256').update(hostname).digest();
    const step = 1 + (hash.readUInt32BE(4) % (slots - 1));
    let slot = hash.readUInt32BE(0) % slots;
    for (let tried = 0; taken.has(slot) && tried < slots; tried++) slot = (slot + step) % slots;
    if (taken.has(slot)) break; // all are given: the rest stays without
    taken.set(slot, hostname);
  }
  return new Map([...taken].map(([slot, hostname]) => [hostname, addressOf(slot + 1)]));
}

function needsAddress(service: Service): boolean {
  return service.addresses.length === 0 && !service.isHeadless && service.resolution !== 'none' && !service.hostname.startsWith('*');
}

function addressOf(number: number): AutoAddress {
  return { ipv4: `240.240.${number >> 8}.${number & 0xff}`, ipv6: `2001:2::f0f0:${number.toString(16)}` };
}
