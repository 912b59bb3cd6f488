import type { Problem, Resource } from '../resource.ts';
import { annotationProblems } from './annotations.ts';
import { apiProblems, credentialProblems } from './api.ts';
import { authorizationPolicyProblems } from './authorization-policy.ts';
import { certificateIssuerProblems, certificateProblems } from './certificate.ts';
import { destinationRuleProblems } from './destination-rule.ts';
import { expansionProblems } from './expansion-limits.ts';
import { fieldLimitProblems } from './field-limits.ts';
import { gatewayProblems } from './gateway.ts';
import { gatewayRouteProblems } from './gateway-route.ts';
import { componentProblems, messageRouteProblems, resiliencyProblems, subscriptionProblems } from './messaging.ts';
import { peerAuthenticationProblems } from './peer-authentication.ts';
import { requestAuthenticationProblems } from './request-authentication.ts';
import { serviceEntryProblems, serviceProblems, workloadEntryProblems } from './service.ts';
import { sidecarProblems } from './sidecar.ts';
import { virtualServiceProblems } from './virtual-service.ts';
import { workloadProblems } from './workload.ts';

/** What the fields of one object mean together, beyond their types. One function per kind that has behaviour. */
const checks: Readonly<Record<string, (spec: never) => Problem[]>> = {
  'networking.istio.io/VirtualService': virtualServiceProblems,
  'networking.istio.io/DestinationRule': destinationRuleProblems,
  'networking.istio.io/Gateway': gatewayProblems,
  'networking.istio.io/ServiceEntry': serviceEntryProblems,
  'networking.istio.io/WorkloadEntry': workloadEntryProblems,
  'networking.istio.io/Sidecar': sidecarProblems,
  'gateway.networking.k8s.io/HTTPRoute': gatewayRouteProblems,
  'gateway.networking.k8s.io/GRPCRoute': gatewayRouteProblems,
  'security.istio.io/AuthorizationPolicy': authorizationPolicyProblems,
  'security.istio.io/PeerAuthentication': peerAuthenticationProblems,
  'security.istio.io/RequestAuthentication': requestAuthenticationProblems,
  'cert-manager.io/Issuer': certificateIssuerProblems,
  'cert-manager.io/ClusterIssuer': certificateIssuerProblems,
  'cert-manager.io/Certificate': certificateProblems,
  '/Service': serviceProblems,
  'mizzen.dev/Workload': workloadProblems,
  'mizzen.dev/Api': apiProblems,
  'mizzen.dev/Credential': credentialProblems,
  'mizzen.dev/MessageRoute': messageRouteProblems,
  'dapr.io/Component': componentProblems,
  'dapr.io/Subscription': subscriptionProblems,
  'dapr.io/Resiliency': resiliencyProblems,
};

export function semanticProblems(resource: Resource): Problem[] {
  const group = resource.apiVersion.includes('/') ? resource.apiVersion.slice(0, resource.apiVersion.indexOf('/')) : '';
  // First, since the other checks go through every entry.
  const tooLarge = expansionProblems(resource);
  if (tooLarge.length > 0) return tooLarge;
  const own = [...annotationProblems(resource), ...(checks[`${group}/${resource.kind}`]?.((resource.spec ?? {}) as never) ?? [])];
  const reported = new Set(own.map(({ path }) => path));
  return [...own, ...fieldLimitProblems(resource).filter(({ path }) => !reported.has(path))];
}
