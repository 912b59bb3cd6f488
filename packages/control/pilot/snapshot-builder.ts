import type { VirtualServiceSpec } from '@mizzen/api';
import { describeOrigin, type Logger, messageOf, silentLogger } from '@mizzen/common';
import type { JwksResolver } from '../citadel/jwks-resolver.ts';
import { backendTlsFindings } from './analysis/backend-tls.ts';
import { describeFinding, type Finding } from './analysis/finding.ts';
import { gatewayListenerFindings } from './analysis/gateway-listeners.ts';
import { keySetFindings } from './analysis/key-sets.ts';
import { policyConflictFindings } from './analysis/policy-conflicts.ts';
import { policyTargetFindings } from './analysis/policy-targets.ts';
import { destinationRuleFindings, sidecarFindings, virtualServiceFindings } from './analysis/references.ts';
import { routeOwnershipFindings } from './analysis/route-ownership.ts';
import { securityPolicyFindings } from './analysis/security-policies.ts';
import { consumerTable } from './apis/consumer-table.ts';
import { type ResolvedApi, resolveApi } from './apis/resolved-api.ts';
import { withDelegates } from './delegates.ts';
import { type Translation, translateGatewayApi } from './gateway-api/translate.ts';
import { defaultMeshConfig, type MeshConfig, meshConfigName, readMeshConfig } from './mesh-config.ts';
import { meshConfigNotes } from './mesh-config-fields.ts';
import type { ConfigReader } from './quarantine.ts';
import { readRouteOwnership, routeOwnershipConfig } from './route-ownership.ts';

import { keySourceOf } from './security/request-authentication.ts';
import { type Configured, type MeshSnapshot, rootNamespace, takeSnapshot } from './snapshot.ts';

type KeySets = Pick<JwksResolver, 'keysOf' | 'problemOf' | 'want'>;

/**
 * Turns the store into snapshots, and keeps what would break traffic out of them: a VirtualService that points to nothing does not
 * replace the version of it that worked. The snapshot then still holds the last good one, and the findings say why.
 */
export class SnapshotBuilder {
  readonly #trustDomain: string;
  readonly #logger: Logger;
  /** The newest admitted version of each VirtualService, by namespace/name. */
  readonly #lastGood: Map<string, Configured<VirtualServiceSpec>>;
  readonly #lastGoodApis: Map<string, ResolvedApi>;
  readonly #filesRoot: string | undefined;
  readonly #brokerAddress: string | undefined;
  readonly #keySets: KeySets;
  readonly #allowedFetchHosts: readonly string[];
  #meshConfig: MeshConfig;
  #reported: Set<string>;
  #findings: readonly Finding[];
  #translation: Translation | undefined;

  /** `filesRoot`: the folder in which resources may name files; undefined: none. `allowedFetchHosts`: for gateways, as in a FetchPolicy. */
  constructor(
    trustDomain: string,
    logger: Logger,
    filesRoot: string | undefined,
    brokerAddress: string | undefined,
    keySets: KeySets,
    allowedFetchHosts: readonly string[] = [],
  ) {
    this.#trustDomain = trustDomain;
    this.#logger = logger;
    this.#lastGood = new Map();
    this.#lastGoodApis = new Map();
    this.#filesRoot = filesRoot;
    this.#brokerAddress = brokerAddress;
    this.#keySets = keySets;
    this.#allowedFetchHosts = allowedFetchHosts;
    this.#meshConfig = defaultMeshConfig;
    this.#reported = new Set();
    this.#findings = [];
    this.#translation = undefined;
  }

  /** What is wrong in the newest snapshot's configuration. */
  get findings(): readonly Finding[] {
    return this.#findings;
  }

  /** What became of the Gateway API's objects in the newest snapshot. */
  get translation(): Translation | undefined {
    return this.#translation;
  }

  /** Builds from another view of the configuration, without effect on what this builder knows and reports. */
  async probe(store: ConfigReader): Promise<MeshSnapshot> {
    const { keysOf, problemOf } = this.#keySets;
    const keySets = { keysOf: keysOf.bind(this.#keySets), problemOf: problemOf.bind(this.#keySets), want: () => {} };
    const copy = new SnapshotBuilder(this.#trustDomain, silentLogger, this.#filesRoot, this.#brokerAddress, keySets, this.#allowedFetchHosts);
    copy.#meshConfig = this.#meshConfig;
    for (const [key, version] of this.#lastGood) copy.#lastGood.set(key, version);
    for (const [key, version] of this.#lastGoodApis) copy.#lastGoodApis.set(key, version);
    return copy.build(store);
  }

  async build(store: ConfigReader): Promise<MeshSnapshot> {
    const configProblem = await this.#readMeshConfig(store);
    const taken = await takeSnapshot(store, this.#trustDomain, this.#meshConfig, this.#filesRoot, this.#brokerAddress, this.#keySets);
    this.#keySets.want(taken.requestAuthentications.flatMap(({ spec }) => (spec.jwtRules ?? []).flatMap((rule) => keySourceOf(rule) ?? [])));
    const consumers = consumerTable(taken.consumerConfigs, taken.credentialConfigs, taken.secrets);
    const findings: Finding[] = [
      ...configProblem,
      ...destinationRuleFindings(taken),
      ...sidecarFindings(taken),
      ...keySetFindings(taken),
      ...securityPolicyFindings(taken),
      ...policyTargetFindings(taken),
      ...policyConflictFindings(taken),
      ...backendTlsFindings(taken),
      ...routeOwnershipFindings(taken),
      ...consumers.findings,
    ];
    const apis = this.#resolveApis(taken, findings);
    const raw: MeshSnapshot = {
      ...taken,
      apis,
      consumers: consumers.table,
      virtualServices: [...taken.virtualServices, ...apis.map(({ virtualService }) => virtualService)],
    };
    const admitted: Configured<VirtualServiceSpec>[] = [];
    const present = new Set<string>();
    for (const virtualService of raw.virtualServices) {
      const key = `${virtualService.kind}/${virtualService.namespace}/${virtualService.name}`;
      present.add(key);
      const own = virtualServiceFindings(virtualService, raw);
      const previous = this.#lastGood.get(key);
      const isBroken = own.some((finding) => finding.level === 'error');
      // A version that once worked stays, whatever has become of what it points to: taking it away would change more.
      if (!isBroken || previous?.revision === virtualService.revision) {
        admitted.push(virtualService);
        this.#lastGood.set(key, virtualService);
      } else if (previous) admitted.push(previous);
      const effect =
        !isBroken || previous?.revision === virtualService.revision ? '' : previous ? ' The version before it stays in effect.' : ' It is not in effect.';
      findings.push(...own.map((finding) => (finding.level === 'error' ? { ...finding, message: finding.message + effect } : finding)));
    }
    for (const key of this.#lastGood.keys()) if (!present.has(key)) this.#lastGood.delete(key);
    this.#translation = translateGatewayApi(taken.gatewayApi, raw);
    findings.push(...gatewayListenerFindings(this.#translation));
    this.#findings = findings;
    this.#report(findings);
    // Where both speak of one host of the mesh, the Gateway API's word counts, as in Istio.
    return {
      ...raw,
      gateways: [...raw.gateways, ...this.#translation.gateways],
      virtualServices: [...this.#translation.virtualServices, ...withDelegates(admitted)],
    };
  }

  /** What an API refers to is found; one whose documents or secrets cannot be used does not replace the version of it that could. */
  #resolveApis(snapshot: MeshSnapshot, findings: Finding[]): ResolvedApi[] {
    const resolved: ResolvedApi[] = [];
    const present = new Set<string>();
    for (const api of snapshot.apiConfigs) {
      const key = `${api.namespace}/${api.name}`;
      present.add(key);
      try {
        const one = resolveApi(api, { documents: snapshot.documents, secrets: snapshot.secrets, allowedFetchHosts: this.#allowedFetchHosts });
        this.#lastGoodApis.set(key, one);
        resolved.push(one);
      } catch (error) {
        const previous = this.#lastGoodApis.get(key);
        if (previous !== undefined) resolved.push(previous);
        findings.push({
          code: 'MZ0005',
          level: 'error',
          object: `Api ${key}`,
          path: 'spec',
          place: api.origin.source === 'file' ? describeOrigin(api.origin) : '',
          message: `Api ${key}: ${messageOf(error)}. ${previous === undefined ? 'It is not in effect.' : 'The version before it stays in effect.'}`,
        });
      }
    }
    for (const key of this.#lastGoodApis.keys()) if (!present.has(key)) this.#lastGoodApis.delete(key);
    return resolved;
  }

  /** What cannot be read does not replace what could. */
  async #readMeshConfig(store: ConfigReader): Promise<Finding[]> {
    const stored = await store.get({ group: '', kind: 'ConfigMap', namespace: rootNamespace, name: meshConfigName });
    const ownership = await store.get({ group: '', kind: 'ConfigMap', namespace: routeOwnershipConfig.namespace, name: routeOwnershipConfig.name });
    const findings: Finding[] = [];
    const add = (source: typeof stored, level: Finding['level'], path: string, message: string) =>
      findings.push({
        ...{ code: 'MZ0003', level, path, message },
        object: `ConfigMap ${source?.key.namespace}/${source?.key.name}`,
        place: source ? describeOrigin(source.origin) : '',
      });
    for (const { level, message } of meshConfigNotes((stored?.resource['data'] as Record<string, unknown> | undefined)?.['mesh']))
      add(stored, level, 'data.mesh', `ConfigMap ${rootNamespace}/${meshConfigName}, data.mesh: ${message}.`);
    try {
      this.#meshConfig = { ...readMeshConfig(stored), routeOwnership: this.#meshConfig.routeOwnership };
    } catch (error) {
      add(stored, 'error', 'data.mesh', `${messageOf(error)}. The settings before it stay in effect.`);
    }
    try {
      this.#meshConfig = { ...this.#meshConfig, routeOwnership: readRouteOwnership(ownership) };
    } catch (error) {
      add(ownership, 'error', `data.${routeOwnershipConfig.key}`, `${messageOf(error)}. Services are routed by their owners only.`);
      this.#meshConfig = { ...this.#meshConfig, routeOwnership: { mode: 'OWNERS', namespaces: [] } };
    }
    return findings;
  }

  #report(findings: readonly Finding[]): void {
    const texts = new Set(findings.filter((finding) => finding.level !== 'info').map(describeFinding));
    for (const text of texts) if (!this.#reported.has(text)) this.#logger.warn(text);
    this.#reported = texts;
  }
}
