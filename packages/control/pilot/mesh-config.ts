import { isPlainObject, type LocalityLbSpec, localityProblems, type ZoneAwareLbSpec } from '@mizzen/api';

import { MizzenError, messageOf, parseBool, parseDurationMs } from '@mizzen/common';
import { parseYaml } from '@mizzen/common/bounded-yaml';

import type { CaCertificate } from '../citadel/trust-bundles.ts';
import type { StoredResource } from '../galley/config-store.ts';
import { type ExtensionProviders, readProviders, type Wrong } from './extension-providers.ts';
import { anyRoutes, type RouteOwnership } from './route-ownership.ts';
import { problemOfRoots } from './trusted-roots.ts';

/** What a call to a host that the mesh does not know becomes (istio/api mesh config.proto `OutboundTrafficPolicy`). */
export type OutboundTrafficMode = 'ALLOW_ANY' | 'REGISTRY_ONLY';

/** What is done to paths before anything is decided on them (istio/api mesh config.proto `ProxyPathNormalization`). */
export type PathNormalization = 'BASE' | 'MERGE_SLASHES' | 'DECODE_AND_MERGE_SLASHES';

/** The settings of the whole mesh that have behaviour (istio/api mesh config.proto `MeshConfig`). */
export interface MeshConfig {
  /** undefined: nothing is said. */
  readonly pathNormalization: PathNormalization | undefined;
  readonly outboundTrafficPolicy: OutboundTrafficMode;
  /** What is sent on a port without a declared protocol within this time decides what is spoken. */
  readonly protocolDetectionTimeoutMs: number;
  /** Calls between sidecars go over HTTP/2 unless a DestinationRule says otherwise (`h2UpgradePolicy: UPGRADE`). */
  readonly upgradesToHttp2: boolean;
  /** For services whose DestinationRule says nothing of localities. */
  readonly localityLbSetting: LocalityLbSpec;
  readonly zoneAwareLbSetting: ZoneAwareLbSpec | undefined;
  /** How often names of services are resolved anew. */
  readonly dnsRefreshMs: number;
  readonly extensionProviders: ExtensionProviders;
  /** Other trust domains that identities of this mesh have, or had. */
  readonly trustDomainAliases: readonly string[];
  /** Roots beside those of the mesh's own authority. */
  readonly caCertificates: readonly CaCertificate[];
  /** Names of providers (`defaultProviders.tracing`) for proxies that no Telemetry says otherwise for. */
  readonly defaultTracingProviders: readonly string[];
  /** Sidecars encrypt calls to services whose instances have sidecars, without a DestinationRule (`enableAutoMtls`). */
  readonly hasAutoMtls: boolean;
  /** For TLS inside the mesh (`meshMTLS.minProtocolVersion`). */
  readonly minMeshTls: 'TLSV1_2' | 'TLSV1_3';
  readonly routeOwnership: RouteOwnership;
}

export const defaultMeshConfig: MeshConfig = {
  outboundTrafficPolicy: 'ALLOW_ANY',
  protocolDetectionTimeoutMs: 1_000,
  upgradesToHttp2: false,
  localityLbSetting: {},
  zoneAwareLbSetting: undefined,
  dnsRefreshMs: 60_000,
  extensionProviders: { tracing: [], authorization: [] },
  trustDomainAliases: [],
  caCertificates: [],
  pathNormalization: undefined,
  defaultTracingProviders: [],
  hasAutoMtls: true,
  minMeshTls: 'TLSV1_2',
  routeOwnership: anyRoutes,
};

/** Where Istio keeps it: the key `mesh` of the ConfigMap `istio` in the root namespace. */
export const meshConfigName = 'istio';

/** Reads the mesh's settings. Throws MizzenError, with the field, for what cannot be used; ./mesh-config-fields.ts names the fields that have no effect. */
export function readMeshConfig(configMap: StoredResource | undefined): MeshConfig {
  const text = (configMap?.resource['data'] as Record<string, unknown> | undefined)?.['mesh'];
  if (text === undefined) return defaultMeshConfig;
  const wrong = (field: string, problem: string) => new MizzenError('invalid-mesh-config', `ConfigMap istio-system/istio, data.mesh: ${field}: ${problem}`);
  if (typeof text !== 'string') throw wrong('data.mesh', 'must be text in YAML');
  let value: unknown;
  try {
    value = parseYaml(text) ?? {};
  } catch (error) {
    throw wrong('YAML', messageOf(error).split('\n')[0]!);
  }
  if (!isPlainObject(value)) throw wrong('YAML', 'must be an object');
  const policy = value['outboundTrafficPolicy'];
  const mode = isPlainObject(policy) ? (policy['mode'] ?? 'ALLOW_ANY') : policy === undefined ? 'ALLOW_ANY' : undefined;
  if (mode !== 'ALLOW_ANY' && mode !== 'REGISTRY_ONLY')
    throw wrong('outboundTrafficPolicy.mode', `${JSON.stringify(mode)} is not known here: ALLOW_ANY or REGISTRY_ONLY`);
  const timeout = value['protocolDetectionTimeout'];
  const timeoutMs = timeout === undefined ? defaultMeshConfig.protocolDetectionTimeoutMs : typeof timeout === 'string' ? parseDurationMs(timeout) : undefined;
  if (timeoutMs === undefined) throw wrong('protocolDetectionTimeout', `${JSON.stringify(timeout)} is no duration: write 100ms or 1s`);
  const upgrade = value['h2UpgradePolicy'] ?? 'DO_NOT_UPGRADE';
  if (upgrade !== 'UPGRADE' && upgrade !== 'DO_NOT_UPGRADE')
    throw wrong('h2UpgradePolicy', `${JSON.stringify(upgrade)} is not known here: UPGRADE or DO_NOT_UPGRADE`);
  return {
    outboundTrafficPolicy: mode,
    protocolDetectionTimeoutMs: timeoutMs,
    upgradesToHttp2: upgrade === 'UPGRADE',
    dnsRefreshMs: readDuration(value['dnsRefreshRate'], 'dnsRefreshRate', wrong) ?? defaultMeshConfig.dnsRefreshMs,
    localityLbSetting: readLocality(value['localityLbSetting'], wrong) ?? {},
    zoneAwareLbSetting: readPlain(value['zoneAwareLbSetting'], 'zoneAwareLbSetting', wrong) as ZoneAwareLbSpec | undefined,
    pathNormalization: readPathNormalization(value['pathNormalization'], wrong),
    trustDomainAliases: stringList(value['trustDomainAliases']),
    caCertificates: readCaCertificates(value['caCertificates'], wrong),
    extensionProviders: readProviders(value['extensionProviders'], wrong),
    hasAutoMtls: readFlag(value['enableAutoMtls'], 'enableAutoMtls', wrong) ?? true,
    minMeshTls: readMinMeshTls(value['meshMTLS'], wrong),
    routeOwnership: anyRoutes,
    defaultTracingProviders: stringList((value['defaultProviders'] as Record<string, unknown> | undefined)?.['tracing']),
  };
}

function readDuration(value: unknown, field: string, wrong: Wrong): number | undefined {
  if (value === undefined) return undefined;
  const ms = typeof value === 'string' ? parseDurationMs(value) : undefined;
  if (!ms) throw wrong(field, `${JSON.stringify(value)} is no duration: write 100ms or 1s`);
  return ms;
}

function readFlag(value: unknown, field: string, wrong: Wrong): boolean | undefined {
  if (value === undefined || value === null) return undefined;
  const flag = typeof value === 'boolean' ? value : typeof value === 'string' ? parseBool(value) : undefined;
  if (flag === undefined) throw wrong(field, `${JSON.stringify(value)} is not a boolean: write true or false`);
  return flag;
}

function readMinMeshTls(value: unknown, wrong: Wrong): MeshConfig['minMeshTls'] {
  const version = readPlain(value, 'meshMTLS', wrong)?.['minProtocolVersion'] ?? 'TLS_AUTO';
  if (version === 'TLS_AUTO' || version === 'TLSV1_2') return 'TLSV1_2';
  if (version === 'TLSV1_3') return 'TLSV1_3';
  throw wrong('meshMTLS.minProtocolVersion', `${JSON.stringify(version)} is not supported: TLS_AUTO, TLSV1_2 or TLSV1_3`);
}

function readPlain(value: unknown, field: string, wrong: Wrong): Readonly<Record<string, unknown>> | undefined {
  if (value === undefined || value === null) return undefined;
  if (!isPlainObject(value)) throw wrong(field, 'must be an object');
  return value;
}

function readPathNormalization(value: unknown, wrong: Wrong): PathNormalization | undefined {
  const mode = readPlain(value, 'pathNormalization', wrong)?.['normalization'];
  if (mode === undefined || mode === 'DEFAULT') return undefined;
  if (mode === 'BASE' || mode === 'MERGE_SLASHES' || mode === 'DECODE_AND_MERGE_SLASHES') return mode;
  throw wrong(
    'pathNormalization.normalization',
    `${JSON.stringify(mode)} is not taken: BASE, MERGE_SLASHES or DECODE_AND_MERGE_SLASHES (paths are always normalised)`,
  );
}

/** Under the same rules as in a DestinationRule. */
function readLocality(value: unknown, wrong: Wrong): LocalityLbSpec | undefined {
  const setting = readPlain(value, 'localityLbSetting', wrong) as LocalityLbSpec | undefined;
  const problem = setting && localityProblems(setting, 'localityLbSetting')[0];
  if (problem) throw wrong(problem.path, problem.message);
  return setting;
}

/** istio/api mesh config.proto `MeshConfig.ca_certificates`. */
function readCaCertificates(value: unknown, wrong: Wrong): CaCertificate[] {
  if (value === undefined || value === null) return [];
  if (!Array.isArray(value)) throw wrong('caCertificates', 'must be a list');
  return value.map((entry: unknown, i) => {
    const at = `caCertificates[${i}]`;
    if (!isPlainObject(entry)) throw wrong(at, 'must be an object');
    const { pem, spiffeBundleUrl, trustDomains = [] } = entry;
    if (!Array.isArray(trustDomains) || !trustDomains.every((name) => typeof name === 'string' && /^[a-z0-9][a-z0-9._-]{0,254}$/.test(name)))
      throw wrong(`${at}.trustDomains`, 'must be names of trust domains: small letters, digits and . _ -');
    if ((pem === undefined) === (spiffeBundleUrl === undefined)) throw wrong(at, 'exactly one of pem and spiffeBundleUrl is needed');
    if (pem !== undefined && problemOfRoots(pem)) throw wrong(`${at}.pem`, problemOfRoots(pem)!);
    if (spiffeBundleUrl !== undefined) {
      if (typeof spiffeBundleUrl !== 'string' || !URL.canParse(spiffeBundleUrl) || !spiffeBundleUrl.startsWith('https:'))
        throw wrong(`${at}.spiffeBundleUrl`, 'must be an https: URL');
      if (trustDomains.length !== 1) throw wrong(`${at}.trustDomains`, 'exactly one is needed: whose bundle is it?');
    }
    return { pem, spiffeBundleUrl, trustDomains } as CaCertificate;
  });
}

const stringList = (value: unknown): string[] => (Array.isArray(value) ? value.filter((entry): entry is string => typeof entry === 'string') : []);
