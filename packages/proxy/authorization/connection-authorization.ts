import { MizzenError } from '@mizzen/common';
import { durationToTimerMs } from '@mizzen/envoy-api';
import { type ExtAuthz, ExtAuthzSchema } from '@mizzen/envoy-api/gen/envoy/extensions/filters/network/ext_authz/v3/ext_authz_pb.js';
import { checkConnection } from '../filters/ext-authz/check.ts';
import type { ProxyContext } from '../http/connection-settings.ts';
import type { ConnectionInfo } from '../net/connection-info.ts';
import { compileMetadataMatcher, type HasMetadata } from '../route/metadata-matcher.ts';
import type { PeerIdentity } from '../tls/peer-identity.ts';
import { refuseUnsupported, supportedFields } from '../xds/supported-fields.ts';
import type { Enforcement } from './enforcement.ts';
import { connectionSubject, type Subject } from './subject.ts';

export interface Connecting {
  readonly info: ConnectionInfo;
  readonly peer: PeerIdentity | undefined;
}

/** Why a connection may not pass: for its access log line. */
export interface ConnectionRefusal {
  readonly flag: string;
  readonly details: string;
}

/** One step in finding out whether a connection may pass; the steps before have left what they found out in `notes`. */
export interface ConnectionStep {
  /** `done` is called once, perhaps at once. Returns how to give it up, where it takes time. */
  authorize(connecting: Connecting, notes: ConnectionNotes, done: (refusal: ConnectionRefusal | undefined) => void): (() => void) | undefined;
}

/** What the steps have found out, by filters. */
export class ConnectionNotes implements HasMetadata {
  /** Who it is, for rules. */
  readonly subject: Subject;
  readonly #byFilter: Map<string, Record<string, unknown>>;

  constructor({ info, peer }: Connecting) {
    this.subject = connectionSubject(info, peer);
    this.#byFilter = new Map();
  }

  metadata(filter: string): unknown {
    return this.#byFilter.get(filter);
  }

  add(filter: string, found: Readonly<Record<string, unknown>>): void {
    this.#byFilter.set(filter, { ...this.#byFilter.get(filter), ...found });
  }
}

const rbacName = 'envoy.filters.network.rbac';
const supportedOfExtAuthz = supportedFields(ExtAuthzSchema, ['statPrefix', 'grpcService', 'failureModeAllow', 'transportApiVersion', 'filterEnabledMetadata']);
const defaultTimeoutMs = 200;

/** envoy.filters.network.rbac: by rules. */
export function byRules(enforcement: Enforcement): ConnectionStep {
  const { shadowPrefix } = enforcement;
  return {
    authorize(_connecting, notes, done) {
      const { subject } = notes;
      const shadow = enforcement.rehearse(subject);
      if (shadow?.policy !== undefined) notes.add(rbacName, { [`${shadowPrefix}shadow_effective_policy_id`]: shadow.policy });
      const { isAllowed, policy } = enforcement.decide(subject);
      done(isAllowed ? undefined : { flag: '', details: `rbac_access_denied_matched_policy[${policy ?? 'none'}]` });
      return undefined;
    },
  };
}

/** envoy.filters.network.ext_authz: by what somebody else says. Throws MizzenError with the place. */
export function bySomebodyElse(config: ExtAuthz, place: string, { findCluster, counters, logger, self }: ProxyContext): ConnectionStep {
  refuseUnsupported(ExtAuthzSchema, config, supportedOfExtAuthz, place);
  const { grpcService, failureModeAllow, filterEnabledMetadata } = config;
  if (grpcService?.targetSpecifier.case !== 'envoyGrpc') throw new MizzenError('unsupported-filter', `${place}: grpc_service needs envoy_grpc`);
  const { clusterName, authority } = grpcService.targetSpecifier.value;
  const timeoutMs = durationToTimerMs(grpcService.timeout) ?? defaultTimeoutMs;
  const isAsked = filterEnabledMetadata && compileMetadataMatcher(filterEnabledMetadata, place);
  return {
    authorize(connecting, notes, done) {
      if (isAsked?.(notes) === false) return void done(undefined);
      const decided = (kind: 'allowed' | 'denied' | 'error', detail = '') => {
        const isLetThrough = kind === 'error' && failureModeAllow;
        counters.count(`external_authorization_total{result="${isLetThrough ? 'failure_allowed' : kind}"}`);
        if (kind === 'error') logger.debug('an external authorization could not be had', { reason: detail });
        done(kind === 'allowed' || isLetThrough ? undefined : { flag: 'UAEX', details: kind === 'error' ? 'ext_authz_error' : 'ext_authz_denied' });
      };
      const cluster = findCluster(clusterName);
      if (cluster === undefined) return void decided('error', 'the cluster of the authorization service is not known');
      return checkConnection(cluster, authority || clusterName, timeoutMs, connecting, self.principal, (decision) =>
        decided(decision.kind, decision.kind === 'error' ? decision.detail : ''),
      );
    },
  };
}
