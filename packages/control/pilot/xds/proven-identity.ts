import { BlockList, isIP } from 'node:net';
import { networkInterfaces } from 'node:os';
import { MizzenError } from '@mizzen/common';
import { type Identity, spiffeUri } from '../../citadel/spiffe-identity.ts';
import type { ProxyView } from '../proxy-view.ts';
import { addressesAnnotation, type WorkloadBinding, type WorkloadBindings } from '../registry/workload-bindings.ts';

/**
 * What a stream is. Its node metadata is a claim; what counts is proved by three things: the certificate or token (namespace and service account), the object
 * that binds that service account to a workload (`WorkloadBindings`), and the address that the stream comes from. All code behind the stream reads the view
 * that is made here, and never the node.
 *
 * | field                                               | source                                                                          |
 * | --------------------------------------------------- | ------------------------------------------------------------------------------- |
 * | namespace, service account                          | certificate or token                                                            |
 * | type, labels, workload, app id, locality, template  | the object that binds the service account                                       |
 * | name                                                | claimed, within the names that the object owns                                  |
 * | address of an endpoint                              | the connection, or the ranges that the object allows                            |
 * | ports, capture mode, bind and admin addresses, ...  | the proxy's own preference: it says how to configure this proxy and no other    |
 */
export interface ProvenIdentity {
  readonly view: ProxyView;
  readonly binding: WorkloadBinding | undefined;
}

/** Why a stream is not what it claims. The code becomes gRPC's PERMISSION_DENIED. */
export class UnprovenIdentity extends MizzenError {
  constructor(message: string) {
    super('unproven-identity', message);
  }
}

/**
 * `identity` undefined: plain text from this machine, which proves nothing; such a proxy is a sidecar that is given no secrets and registers nothing.
 * Throws UnprovenIdentity.
 */
export function proveIdentity(claimed: ProxyView, identity: Identity | undefined, peerAddress: string, bindings: WorkloadBindings): ProvenIdentity {
  if (identity === undefined) {
    if (claimed.type === 'gateway') throw new UnprovenIdentity('a gateway must prove its identity: connect to the TLS port with a token or a certificate');
    return { view: { ...claimed, registers: false, isProven: false }, binding: undefined };
  }
  const { namespace, serviceAccount } = identity;
  if (namespace !== claimed.namespace || serviceAccount !== claimed.serviceAccount)
    throw new UnprovenIdentity(
      `the proxy claims the service account ${claimed.namespace}/${claimed.serviceAccount}, but has proved to be ${spiffeUri(identity)}`,
    );
  const group = claimed.metadata['AUTO_REGISTER_GROUP'];
  const found = bindings.find({
    ...{ namespace, serviceAccount, name: claimed.name },
    group: typeof group === 'string' && group !== '' ? group : undefined,
    address: claimed.address,
  });
  if (found !== undefined && 'refusal' in found) throw new UnprovenIdentity(`${spiffeUri(identity)} is not ${namespace}/${claimed.name}: ${found.refusal}`);
  if (found === undefined) return { view: withoutClaims(claimed, identity), binding: undefined };
  const { binding, name } = found;
  if (claimed.type !== binding.type)
    throw new UnprovenIdentity(
      `the proxy claims to be a ${claimed.type}, but the ${binding.kind} ${namespace}/${binding.name} of ${spiffeUri(identity)} is for a ${binding.type}`,
    );
  if (claimed.registers && !isAllowedAddress(claimed.address, peerAddress, binding))
    throw new UnprovenIdentity(
      `${namespace}/${name} cannot register the address ${claimed.address}: it connects from ${hostOf(peerAddress)}. ` +
        `Allow the address with the annotation ${addressesAnnotation} of the ${binding.kind} ${namespace}/${binding.name}.`,
    );
  return {
    view: {
      ...claimed,
      name,
      workload: binding.name,
      labels: binding.labels,
      appId: claimed.appId === undefined ? undefined : binding.appId,
      locality: binding.locality ?? claimed.locality,
      // A person's WorkloadEntry is what they wrote; there is nothing to register.
      registers: claimed.registers && binding.kind !== 'WorkloadEntry',
      isProven: true,
    },
    binding,
  };
}

/** A workload that no object speaks of may call others; it is called by no one, and has no labels that policies or secrets could be bound to. */
function withoutClaims(claimed: ProxyView, identity: Identity): ProxyView {
  const refused =
    claimed.type === 'gateway'
      ? 'be a gateway'
      : claimed.registers
        ? 'register'
        : claimed.inbound.length > 0 || claimed.capture?.inboundPort !== undefined
          ? 'accept inbound connections'
          : claimed.appId !== undefined
            ? 'use the message mesh'
            : undefined;
  const { namespace, serviceAccount } = identity;
  if (refused !== undefined)
    throw new UnprovenIdentity(
      `${namespace}/${claimed.name} cannot ${refused}: no Workload, WorkloadGroup or WorkloadEntry in the namespace ${namespace} binds the name ` +
        `${claimed.name} to the service account ${serviceAccount}. Create one, for example with ` +
        `\`mizzen token ${serviceAccount} --namespace ${namespace} --workload ${claimed.name}${claimed.type === 'gateway' ? ' --gateway' : ''}\`.`,
    );
  return { ...claimed, workload: serviceAccount, labels: {}, isProven: true };
}

function isAllowedAddress(claimed: string, peerAddress: string, { addresses }: WorkloadBinding): boolean {
  if (isIP(claimed) === 0) return addresses.includes(claimed);
  const peer = hostOf(peerAddress);
  if (claimed === peer) return true;
  if (isOfThisMachine(peer) && isOfThisMachine(claimed)) return true;
  return addresses.some((range) => isWithin(claimed, range));
}

function isWithin(address: string, range: string): boolean {
  const [network = '', prefix] = range.split('/');
  if (isIP(network) === 0 || isIP(network) !== isIP(address)) return false;
  const family = isIP(network) === 6 ? 'ipv6' : 'ipv4';
  const bits = prefix === undefined ? (family === 'ipv6' ? 128 : 32) : Number(prefix);
  if (!Number.isInteger(bits) || bits < 0 || bits > (family === 'ipv6' ? 128 : 32)) return false;
  const list = new BlockList();
  list.addSubnet(network, bits, family);
  return list.check(address, family);
}

const loopback = new BlockList();
loopback.addSubnet('127.0.0.0', 8, 'ipv4');
loopback.addAddress('::1', 'ipv6');

function isOfThisMachine(address: string): boolean {
  const version = isIP(address);
  if (version === 0) return false;
  if (loopback.check(address, version === 6 ? 'ipv6' : 'ipv4')) return true;
  return Object.values(networkInterfaces()).some((list) => list?.some((one) => one.address === address));
}

/** Of `address:port`, where an IPv4 address may be written as an IPv6 one. */
function hostOf(peerAddress: string): string {
  return peerAddress.slice(0, peerAddress.lastIndexOf(':')).replace(/^::ffff:(?=\d+\.)/, '');
}
