import { createRegistry, fromJson, type JsonValue } from '@bufbuild/protobuf';
import { unpackAny } from '@mizzen/envoy-api';
import type { FilterChain } from '@mizzen/envoy-api/gen/envoy/config/listener/v3/listener_components_pb.js';
import { ListenerSchema } from '@mizzen/envoy-api/gen/envoy/config/listener/v3/listener_pb.js';
import { type RBAC, RBAC_Action } from '@mizzen/envoy-api/gen/envoy/config/rbac/v3/rbac_pb.js';
import { RBACSchema as HttpRbacSchema } from '@mizzen/envoy-api/gen/envoy/extensions/filters/http/rbac/v3/rbac_pb.js';
import { HttpConnectionManagerSchema } from '@mizzen/envoy-api/gen/envoy/extensions/filters/network/http_connection_manager/v3/http_connection_manager_pb.js';
import { RBACSchema as NetworkRbacSchema } from '@mizzen/envoy-api/gen/envoy/extensions/filters/network/rbac/v3/rbac_pb.js';
import { knownMessages } from '@mizzen/envoy-api/known-messages';
import { RequestHead } from '../message/request-head.ts';
import { normalizeTarget } from '../route/normalize-path.ts';
import { RuleSet } from './rule-set.ts';
import { connectionSubject, requestSubject, type Subject } from './subject.ts';

/** A request that somebody wants to know about. */
export interface AskedRequest {
  /** `spiffe://...`; undefined: it comes without mutual TLS. */
  readonly principal: string | undefined;
  readonly sourceIp: string;
  readonly method: string;
  readonly path: string;
  readonly host: string;
  readonly headers: Readonly<Record<string, string>>;
  /** Of a token that was accepted. */
  readonly claims: Readonly<Record<string, unknown>> | undefined;
}

export interface ExplainedRules {
  readonly action: 'ALLOW' | 'DENY' | 'LOG' | 'CUSTOM';
  readonly isDryRun: boolean;
  readonly policies: readonly string[];
  /** Which of them the asked request meets; undefined: none. */
  readonly met: string | undefined;
}

export interface ExplainedPort {
  readonly listener: string;
  readonly port: number;
  readonly isHttp: boolean;
  readonly rules: readonly ExplainedRules[];
  /** What comes of the asked request; undefined: none was asked about. */
  readonly verdict: { readonly isAllowed: boolean; readonly by: string } | undefined;
}

const customPrefix = 'istio_ext_authz_';

/** What the rules of authorization of a proxy are, from its listeners as its admin server shows them, and what they decide about a request. */
export function explainAuthorization(listeners: readonly JsonValue[], asked: AskedRequest | undefined): ExplainedPort[] {
  const registry = createRegistry(...knownMessages);
  return listeners.flatMap((json) => {
    const listener = fromJson(ListenerSchema, json, { registry, ignoreUnknownFields: true });
    const address = listener.address?.address;
    const listenPort = address?.case === 'socketAddress' && address.value.portSpecifier.case === 'portValue' ? address.value.portSpecifier.value : 0;
    const own = listener.metadata?.filterMetadata['mizzen.inbound']?.['port'];
    const seen = new Set<string>();
    return listener.filterChains.flatMap((chain): ExplainedPort[] => {
      const found = rulesOf(chain);
      const port = chain.filterChainMatch?.destinationPort ?? (typeof own === 'number' ? own : listenPort);
      const key = `${port}/${found?.isHttp}`;
      if (found === undefined || found.sets.length === 0 || seen.has(key)) return [];
      seen.add(key);
      return [{ listener: listener.name, port, isHttp: found.isHttp, ...explain(found, port, asked) }];
    });
  });
}

interface FoundSet {
  readonly rbac: RBAC;
  readonly isDryRun: boolean;
  readonly isCustom: boolean;
}

function rulesOf(chain: FilterChain): { readonly isHttp: boolean; readonly sets: FoundSet[] } | undefined {
  const typed = (config: { readonly case: string | undefined; readonly value?: unknown }) =>
    config.case === 'typedConfig' ? (config.value as never) : undefined;
  const of = ({
    rules,
    shadowRules,
    shadowRulesStatPrefix,
  }: {
    rules?: RBAC | undefined;
    shadowRules?: RBAC | undefined;
    shadowRulesStatPrefix: string;
  }): FoundSet[] => [
    ...(shadowRules ? [{ rbac: shadowRules, isDryRun: shadowRulesStatPrefix !== customPrefix, isCustom: shadowRulesStatPrefix === customPrefix }] : []),
    ...(rules ? [{ rbac: rules, isDryRun: false, isCustom: false }] : []),
  ];
  const manager = unpackAny(HttpConnectionManagerSchema, typed(chain.filters.at(-1)?.configType ?? { case: undefined }));
  const isRbac = <T>(value: T | undefined): value is T => value !== undefined;
  if (manager)
    return {
      isHttp: true,
      sets: manager.httpFilters
        .map(({ configType }) => unpackAny(HttpRbacSchema, typed(configType)))
        .filter(isRbac)
        .flatMap(of),
    };
  return {
    isHttp: false,
    sets: chain.filters
      .map(({ configType }) => unpackAny(NetworkRbacSchema, typed(configType)))
      .filter(isRbac)
      .flatMap(of),
  };
}

function explain({ isHttp, sets }: { readonly isHttp: boolean; readonly sets: readonly FoundSet[] }, port: number, asked: AskedRequest | undefined) {
  const subject = asked && subjectOf(asked, port, isHttp);
  let verdict = asked && { isAllowed: true, by: 'no policy is against it' };
  const rules = sets.map(({ rbac, isDryRun, isCustom }): ExplainedRules => {
    const action = isCustom ? 'CUSTOM' : rbac.action === RBAC_Action.DENY ? 'DENY' : rbac.action === RBAC_Action.LOG ? 'LOG' : 'ALLOW';
    const met = subject && new RuleSet(rbac, 'rules').match(subject);
    if (verdict?.isAllowed && !isDryRun) {
      if (action === 'DENY' && met !== undefined) verdict = { isAllowed: false, by: met };
      else if (action === 'ALLOW')
        verdict = met === undefined ? { isAllowed: false, by: 'there are ALLOW policies, and it meets none of them' } : { isAllowed: true, by: met };
      else if (action === 'CUSTOM' && met !== undefined) verdict = { isAllowed: true, by: `the provider that decides for ${met} has yet to agree` };
    }
    return { action, isDryRun, policies: Object.keys(rbac.policies), met };
  });
  return { rules, verdict };
}

function subjectOf({ principal, sourceIp, method, path, host, headers, claims }: AskedRequest, port: number, isHttp: boolean): Subject {
  const info = {
    ...{ remoteAddress: sourceIp, remotePort: 0, localAddress: '127.0.0.1', localPort: port },
    ...{ isOriginalDestination: true, isTls: principal !== undefined, serverName: '', applicationProtocols: [] },
  };
  const peer = principal === undefined ? undefined : { uri: principal, subject: '', hash: '' };
  if (!isHttp) return connectionSubject(info, peer);
  const head = new RequestHead();
  head.method = method;
  head.target = normalizeTarget(path) ?? path;
  head.authority = host;
  for (const [name, value] of Object.entries(headers)) head.headers.add(name.toLowerCase(), value);
  return requestSubject(head, info, peer, (filter) => (filter === 'envoy.filters.http.jwt_authn' && claims ? { payload: claims } : undefined));
}
