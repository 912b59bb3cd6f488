import type { WorkloadEntrySpec, WorkloadGroupSpec, WorkloadSpec } from '@mizzen/api';
import type { ConfigStore, StoredResource } from '../../galley/config-store.ts';

/** On the WorkloadEntry of a sidecar that registered itself: the node id. An entry without it was written by a person and is never overwritten. */
export const registeredAnnotation = 'mizzen.dev/registered-by';
/** On a WorkloadGroup: its members are gateways. */
export const gatewayAnnotation = 'mizzen.dev/gateway';
/** On a WorkloadGroup or Workload: the addresses (CIDR, comma-separated) at which members may register, where that is not the address that they connect from. */
export const addressesAnnotation = 'mizzen.dev/addresses';
/** On a WorkloadGroup: the members' name in the message mesh. */
export const appIdAnnotation = 'mizzen.dev/app-id';

const networking = 'networking.istio.io';

/** What an object (Workload, WorkloadGroup, WorkloadEntry), written by a user who is authorized in its namespace, says of the proxies of a service account. */
export interface WorkloadBinding {
  readonly kind: 'Workload' | 'WorkloadGroup' | 'WorkloadEntry';
  readonly name: string;
  readonly namespace: string;
  readonly serviceAccount: string;
  readonly type: 'sidecar' | 'gateway';
  readonly labels: Readonly<Record<string, string>>;
  readonly appId: string | undefined;
  readonly locality: string | undefined;
  /** The one address of a WorkloadEntry; CIDR ranges elsewhere. */
  readonly addresses: readonly string[];
  readonly template: WorkloadEntrySpec;
  /** For the WorkloadEntry of a member. */
  readonly annotations: Readonly<Record<string, string>>;
  /** Changes when the object changes. */
  readonly version: string;
}

export interface WantedBinding {
  readonly namespace: string;
  readonly serviceAccount: string;
  /** The name that the proxy claims. */
  readonly name: string;
  /** The WorkloadGroup that it claims to belong to. */
  readonly group: string | undefined;
  readonly address: string | undefined;
}

export type BindingResult = { readonly binding: WorkloadBinding; readonly name: string } | { readonly refusal: string } | undefined;

const bindingKinds = [
  ['mizzen.dev', 'Workload'],
  [networking, 'WorkloadGroup'],
  [networking, 'WorkloadEntry'],
] as const;

/** The objects that decide which labels, names, addresses and kind of proxy a service account may have. Follows the store, so that it is never older than a write. */
export class WorkloadBindings {
  readonly #objects: Map<string, StoredResource>;
  readonly #entriesByAddress: Map<string, string>;

  constructor(stored: readonly StoredResource[] = []) {
    this.#objects = new Map();
    this.#entriesByAddress = new Map();
    for (const one of stored) this.#set(one);
  }

  /** Reads the store and follows it; resolves to the bindings and the function that ends that. */
  static async follow(store: ConfigStore): Promise<{ readonly bindings: WorkloadBindings; readonly stop: () => void }> {
    const since = store.revision();
    const bindings = new WorkloadBindings(await readBindingObjects(store));
    const stop = store.watch(since, ({ type, stored }) => {
      if (!bindingKinds.some(([group, kind]) => stored.key.group === group && stored.key.kind === kind)) return;
      if (type === 'deleted') bindings.#delete(stored);
      else bindings.#set(stored);
    });
    return { bindings, stop };
  }

  /**
   * The binding of a proxy. The object with the longest name that the proxy's name begins with owns the name: NAME itself, NAME-N for the replicas of a
   * Workload, NAME-... for the members of a WorkloadGroup. undefined: no object speaks of it.
   */
  find(wanted: WantedBinding): BindingResult {
    const { namespace, serviceAccount, name, group, address } = wanted;
    const owner = this.#ownerOf(namespace, name, serviceAccount);
    if (owner?.serviceAccount === serviceAccount) return { binding: owner, name };
    if (group !== undefined) {
      const bound = this.#get('WorkloadGroup', namespace, group);
      if (bound === undefined) return { refusal: `the WorkloadGroup ${namespace}/${group} does not exist` };
      if (bound.serviceAccount !== serviceAccount)
        return { refusal: `the WorkloadGroup ${namespace}/${group} is for the service account ${bound.serviceAccount}, not for ${serviceAccount}` };
      const member = `${group}-${name}`;
      const memberOwner = this.#ownerOf(namespace, member, serviceAccount);
      if (memberOwner?.kind !== 'WorkloadGroup' || memberOwner.name !== group)
        return { refusal: `the name ${namespace}/${member} belongs to the ${memberOwner?.kind} ${memberOwner?.name}` };
      return { binding: bound, name: member };
    }
    if (owner !== undefined)
      return { refusal: `the name ${namespace}/${name} belongs to the ${owner.kind} ${owner.name} of the service account ${owner.serviceAccount}` };
    const entry = address === undefined ? undefined : this.#entriesByAddress.get(`${namespace}/${address}`);
    const bound = entry === undefined ? undefined : this.#get('WorkloadEntry', namespace, entry);
    return bound?.serviceAccount === serviceAccount ? { binding: bound, name: bound.name } : undefined;
  }

  /** The app ids of sidecars, in the order of their names. */
  apps(): { readonly namespace: string; readonly serviceAccount: string; readonly appId: string }[] {
    const found = new Map<string, { readonly namespace: string; readonly serviceAccount: string; readonly appId: string }>();
    for (const { key } of this.#objects.values()) {
      const binding = this.#get(key.kind as WorkloadBinding['kind'], key.namespace, key.name);
      if (binding?.type !== 'sidecar' || binding.appId === undefined) continue;
      const { namespace, serviceAccount, appId } = binding;
      found.set(JSON.stringify([namespace, serviceAccount, appId]), { namespace, serviceAccount, appId });
    }
    return [...found].sort(([a], [b]) => (a < b ? -1 : 1)).map(([, app]) => app);
  }

  /** What binds service accounts to gateways. */
  gateways(): WorkloadBinding[] {
    return [...this.#objects.values()]
      .map(({ key }) => this.#get(key.kind as WorkloadBinding['kind'], key.namespace, key.name))
      .filter((binding) => binding !== undefined)
      .filter((binding) => binding.type === 'gateway');
  }

  #ownerOf(namespace: string, name: string, serviceAccount: string): WorkloadBinding | undefined {
    const exact = (['Workload', 'WorkloadGroup', 'WorkloadEntry'] as const)
      .map((kind) => this.#get(kind, namespace, name))
      .filter((binding) => binding !== undefined);
    if (exact.length > 0) return exact.find((binding) => binding.serviceAccount === serviceAccount) ?? exact[0];
    for (let cut = name.lastIndexOf('-'); cut > 0; cut = name.lastIndexOf('-', cut - 1)) {
      const prefix = name.slice(0, cut);
      const workload = /^\d+$/.test(name.slice(cut + 1)) ? this.#get('Workload', namespace, prefix) : undefined;
      const owner = workload ?? this.#get('WorkloadGroup', namespace, prefix);
      if (owner !== undefined) return owner;
    }
    return undefined;
  }

  #get(kind: WorkloadBinding['kind'], namespace: string, name: string): WorkloadBinding | undefined {
    const stored = this.#objects.get(`${kind}/${namespace}/${name}`);
    if (stored === undefined) return undefined;
    if (kind === 'WorkloadEntry') return ofEntry(stored);
    if (kind === 'WorkloadGroup') return ofGroup(stored);
    const groupName = (stored.resource.spec as WorkloadSpec | undefined)?.workloadGroup;
    return ofWorkload(stored, groupName === undefined ? undefined : this.#objects.get(`WorkloadGroup/${namespace}/${groupName}`));
  }

  #set(stored: StoredResource): void {
    this.#delete(stored);
    if (stored.resource.metadata.annotations?.[registeredAnnotation] !== undefined) return;
    const { kind, namespace, name } = stored.key;
    this.#objects.set(`${kind}/${namespace}/${name}`, stored);
    const address = kind === 'WorkloadEntry' ? (stored.resource.spec as WorkloadEntrySpec | undefined)?.address : undefined;
    if (address) this.#entriesByAddress.set(`${namespace}/${address}`, name);
  }

  #delete({ key: { kind, namespace, name } }: StoredResource): void {
    const before = this.#objects.get(`${kind}/${namespace}/${name}`);
    if (before === undefined) return;
    this.#objects.delete(`${kind}/${namespace}/${name}`);
    const address = kind === 'WorkloadEntry' ? `${namespace}/${(before.resource.spec as WorkloadEntrySpec | undefined)?.address}` : undefined;
    if (address !== undefined && this.#entriesByAddress.get(address) === name) this.#entriesByAddress.delete(address);
  }
}

export async function readBindingObjects(store: Pick<ConfigStore, 'list'>): Promise<StoredResource[]> {
  const lists = await Promise.all(bindingKinds.map(([group, kind]) => store.list(group, kind)));
  return lists.flatMap(({ items }) => items);
}

const versionOf = (...objects: readonly (StoredResource | undefined)[]) => objects.map((object) => object?.revision ?? 0).join('.');
const listOf = (text: string | undefined) => (text ?? '').split(',').flatMap((each) => (each.trim() === '' ? [] : [each.trim()]));

function ofWorkload(stored: StoredResource, group: StoredResource | undefined): WorkloadBinding {
  const spec = (stored.resource.spec ?? {}) as WorkloadSpec;
  const { metadata } = stored.resource;
  const { metadata: groupMetadata, template = {} } = (group?.resource.spec ?? {}) as WorkloadGroupSpec;
  const labels = { ...groupMetadata?.labels, ...template.labels, ...metadata.labels };
  const { name, namespace } = stored.key;
  return {
    kind: 'Workload',
    ...{ name, namespace, labels, template },
    serviceAccount: spec.serviceAccount ?? 'default',
    type: spec.gateway === true ? 'gateway' : 'sidecar',
    appId: spec.messaging?.appId ?? labels['app'] ?? name,
    locality: spec.locality ?? template.locality,
    addresses: listOf(metadata.annotations?.[addressesAnnotation]),
    annotations: groupMetadata?.annotations ?? {},
    version: versionOf(stored, group),
  };
}

function ofGroup(stored: StoredResource): WorkloadBinding {
  const { metadata: memberMetadata, template = {} } = (stored.resource.spec ?? {}) as WorkloadGroupSpec;
  const annotations = stored.resource.metadata.annotations ?? {};
  const labels = { ...memberMetadata?.labels, ...template.labels };
  const { name, namespace } = stored.key;
  return {
    kind: 'WorkloadGroup',
    ...{ name, namespace, labels, template },
    serviceAccount: template.serviceAccount || 'default',
    type: annotations[gatewayAnnotation] === 'true' ? 'gateway' : 'sidecar',
    appId: annotations[appIdAnnotation] ?? labels['app'] ?? name,
    locality: template.locality,
    addresses: listOf(annotations[addressesAnnotation]),
    annotations: memberMetadata?.annotations ?? {},
    version: versionOf(stored),
  };
}

function ofEntry(stored: StoredResource): WorkloadBinding {
  const spec = (stored.resource.spec ?? {}) as WorkloadEntrySpec;
  const { metadata } = stored.resource;
  const labels = { ...metadata.labels, ...spec.labels };
  const { name, namespace } = stored.key;
  return {
    kind: 'WorkloadEntry',
    ...{ name, namespace, labels },
    serviceAccount: spec.serviceAccount || 'default',
    type: 'sidecar',
    appId: labels['app'] ?? name,
    locality: spec.locality,
    addresses: spec.address ? [spec.address] : [],
    template: {},
    annotations: {},
    version: versionOf(stored),
  };
}
