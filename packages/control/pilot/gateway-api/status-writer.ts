import { isDeepStrictEqual } from 'node:util';
import { findKind, isPlainObject } from '@mizzen/api';
import { errorBoundary, type Logger, messageOf } from '@mizzen/common';
import type { ResourceKey } from '../../galley/config-store.ts';
import type { ResourceRegistry } from '../../galley/resource-registry.ts';
import { policyTargetStates } from '../analysis/policy-targets.ts';
import type { ProxyView } from '../proxy-view.ts';
import type { Excluded } from '../quarantine.ts';
import { selects } from '../registry/service.ts';
import type { Configured, MeshSnapshot } from '../snapshot.ts';
import { backendTlsStates } from './backend-tls.ts';
import { ExclusionStatus } from './exclusion-status.ts';
import { supportedFeatures } from './features.ts';
import { type GatewayState, gatewayNameLabel, type Listener } from './listeners.ts';
import { dated, entriesOf, type Status } from './status-conditions.ts';
import type { Translation } from './translate.ts';
import { condition, controllerName, failed, group } from './types.ts';

const boundary = errorBoundary('gateway-api.status');

const manager = 'mizzen-gateway-controller';

/** Writes what has become of the Gateway API's objects into their status, where it has changed. */
export class StatusWriter {
  readonly #registry: ResourceRegistry;
  readonly #logger: Logger;
  readonly #exclusions: ExclusionStatus;
  #queue: Promise<void>;

  constructor(registry: ResourceRegistry, logger: Logger) {
    this.#registry = registry;
    this.#logger = logger;
    this.#exclusions = new ExclusionStatus(registry);
    this.#queue = Promise.resolve();
  }

  /** `proxies`: those that are connected; `excluded`: objects that generation fails with. */
  write(translation: Translation, snapshot: MeshSnapshot, proxies: readonly ProxyView[], excluded: readonly Excluded[]): void {
    const write = async () => {
      boundary.enter();
      for (const { stored, change } of await this.#exclusions.changes(excluded)) await this.#change(stored.key, change);
      for (const one of snapshot.gatewayApi.classes)
        if (one.spec.controllerName === controllerName)
          await this.#set(one, (before) => ({
            conditions: dated([condition('Accepted', 'Accepted', 'Gateways of this class are served by Mizzen')], before, one),
            supportedFeatures: supportedFeatures.map((name) => ({ name })),
          }));
      for (const state of translation.states) await this.#writeGateway(state, translation, proxies);
      for (const { route, parents } of translation.routes)
        await this.#set(route, (before) => ({
          parents: [
            ...othersOf(before['parents']),
            ...parents.map(({ ref, conditions }) => ({
              parentRef: ref,
              controllerName,
              conditions: dated(conditions, { conditions: parentBefore(before, ref)?.['conditions'] }, route),
            })),
          ],
        }));
      for (const { policy, conditions, group: of } of policyTargetStates(snapshot))
        await this.#set(policy, (before) => ({ ...before, conditions: [...otherConditions(before), ...dated(conditions, before, policy)] }), of);
      for (const { policy, ancestors, conditions } of backendTlsStates(snapshot, translation))
        await this.#set(policy, (before) => ({
          ancestors: [
            ...othersOf(before['ancestors']),
            ...ancestors.map((ancestorRef) => ({ ancestorRef, controllerName, conditions: dated(conditions, ancestorBefore(before, ancestorRef), policy) })),
          ],
        }));
    };
    // Statuses that could not be written do not stop those to come.
    this.#queue = this.#queue.then(write).catch((error: unknown) => {
      boundary.unexpected(error);
      this.#logger.error('statuses could not be written', { error: messageOf(error) });
    });
  }

  /** Resolves when what was asked for so far is written. */
  async settled(): Promise<void> {
    await this.#queue;
  }

  async #writeGateway(state: GatewayState, { attached }: Translation, proxies: readonly ProxyView[]): Promise<void> {
    const { gateway, listeners, listenerSets, conditions } = state;
    const selector = { [gatewayNameLabel]: gateway.name, ...gateway.spec.infrastructure?.labels };
    const serving = proxies.filter((view) => view.type === 'gateway' && view.namespace === gateway.namespace && selects(selector, view.labels));
    const addresses = [
      ...new Set(serving.map(({ gatewayBind, address }) => (gatewayBind === '0.0.0.0' || gatewayBind === '::' ? address : gatewayBind))),
    ].sort();
    const wanted = (gateway.spec.addresses ?? []).flatMap(({ value }) => value ?? []);
    const unusable = wanted.filter((value) => !addresses.includes(value));
    const isAccepted = conditions.every(({ status }) => status === 'True');
    const programmed = !isAccepted
      ? failed('Programmed', 'Invalid', 'no listener is valid')
      : addresses.length === 0
        ? failed(
            'Programmed',
            'AddressNotAssigned',
            `no gateway proxy with the label ${gatewayNameLabel}: ${gateway.name} is connected in namespace ${gateway.namespace}`,
          )
        : unusable.length > 0
          ? failed('Programmed', 'AddressNotUsable', `no proxy of this Gateway is at ${unusable.join(', ')}; its proxies are at ${addresses.join(', ')}`)
          : condition('Programmed', 'Programmed', `served by ${serving.map(({ name }) => name).join(', ')}`);
    const listenerStatus = (owner: Configured<unknown>, before: Status) =>
      listeners
        .filter((listener) => listener.owner === owner)
        .map((listener) => ({
          name: listener.spec.name,
          supportedKinds: listener.supportedKinds.map((kind) => ({ group, kind })),
          attachedRoutes: attached.get(`${gateway.namespace}/${listener.name}`) ?? 0,
          conditions: dated(listener.conditions, listenerBefore(before, listener), owner),
        }));
    await this.#set(gateway, (before) => ({
      addresses: addresses.filter((value) => wanted.length === 0 || wanted.includes(value)).map((value) => ({ type: 'IPAddress', value })),
      conditions: dated([...conditions, programmed], before, gateway),
      listeners: listenerStatus(gateway, before),
      ...(listenerSets.length > 0 ? { attachedListenerSets: listenerSets.filter(({ isAdmitted }) => isAdmitted).length } : {}),
    }));
    for (const { set, isAdmitted } of listenerSets) {
      const own = listeners.filter(({ owner }) => owner === set);
      const isSetValid = own.some(({ isValid }) => isValid);
      const accepted = !isAdmitted
        ? failed(
            'Accepted',
            'NotAllowed',
            `the Gateway ${gateway.namespace}/${gateway.name} takes no ListenerSets of namespace ${set.namespace}: see its allowedListeners`,
          )
        : isSetValid
          ? condition('Accepted', 'Accepted')
          : failed('Accepted', 'ListenersNotValid', 'no listener is valid');
      await this.#set(set, (before) => ({
        conditions: dated([accepted, accepted.status === 'True' ? { ...programmed } : failed('Programmed', accepted.reason, accepted.message)], before, set),
        listeners: listenerStatus(set, before),
      }));
    }
  }

  async #set(object: Configured<unknown>, make: (before: Status) => Status, ofGroup = group): Promise<void> {
    const key = { group: ofGroup, kind: object.kind, namespace: object.namespace, name: object.name };
    // Its status says that it is left out, or which version of it is in effect.
    if (!this.#exclusions.has(key)) await this.#change(key, make);
  }

  async #change(object: ResourceKey, make: (before: Status) => Status): Promise<void> {
    const kind = findKind(object.group, object.kind);
    if (kind === undefined) return;
    try {
      const { resource } = await this.#registry.get(kind, object.namespace, object.name);
      const before = isPlainObject(resource.status) ? resource.status : {};
      const status = make(before);
      if (isDeepStrictEqual(status, before)) return;
      await this.#registry.update(
        kind,
        object.namespace,
        object.name,
        { ...resource, status },
        { manager, origin: { source: 'api', name: manager } },
        'status',
      );
    } catch (error) {
      // It may have changed or gone meanwhile: the next snapshot speaks of what is there then.
      this.#logger.debug('a status could not be written', { object: `${object.kind} ${object.namespace}/${object.name}`, error: messageOf(error) });
    }
  }
}

/** What other controllers have written stays. */
const othersOf = (value: unknown) => entriesOf(value).filter((entry) => entry['controllerName'] !== controllerName);

const otherConditions = (before: Status) => entriesOf(before['conditions']).filter((entry) => entry['type'] !== 'Accepted');

const ownEntry = (value: unknown, key: string, ref: unknown) =>
  entriesOf(value).find((entry) => entry['controllerName'] === controllerName && isDeepStrictEqual(entry[key], JSON.parse(JSON.stringify(ref))));
const parentBefore = (before: Status, ref: unknown) => ownEntry(before['parents'], 'parentRef', ref);
const ancestorBefore = (before: Status, ref: unknown): Status => ownEntry(before['ancestors'], 'ancestorRef', ref) ?? {};
const listenerBefore = (before: Status, { spec }: Listener): Status => entriesOf(before['listeners']).find((entry) => entry['name'] === spec.name) ?? {};
