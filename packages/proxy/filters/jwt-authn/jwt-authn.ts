import { MizzenError } from '@mizzen/common';
import { JwtAuthenticationSchema, type JwtRequirement } from '@mizzen/envoy-api/gen/envoy/extensions/filters/http/jwt_authn/v3/config_pb.js';
import { removeQueryParameter } from '@mizzen/gateway';
import type { Exchange } from '../../http/exchange.ts';
import type { TokenProblem } from '../../jwt/token-verifier.ts';
import { isHeaderValue, utf8Bytes } from '../../message/header-bytes.ts';
import { compileMatch } from '../../route/compile-match.ts';
import { matchesPath } from '../../route/route.ts';
import { refuseUnsupported, supportedFields } from '../../xds/supported-fields.ts';
import type { FilterKind } from '../filter.ts';
import { unpackConfig } from '../unpack-config.ts';
import { Provider } from './provider.ts';
import { type Accepted, compileRequirement, type Findings, type Outcome, type Requirement, toleratesFailure } from './requirement.ts';

const name = 'envoy.filters.http.jwt_authn';
const supported = supportedFields(JwtAuthenticationSchema, ['providers', 'rules', 'bypassCorsPreflight', 'requirementMap', 'stripFailureResponse']);

/** What Envoy says of each. */
const texts: Readonly<Record<Exclude<Outcome, 'fulfilled'>, string>> = {
  missing: 'Jwt is missing',
  malformed: 'Jwt is not in the form of Header.Payload.Signature with two dots and 3 sections',
  algorithm_not_allowed: 'Jwt header [alg] is not supported',
  wrong_issuer: 'Jwt issuer is not configured',
  wrong_audience: 'Audiences in Jwt are not allowed',
  wrong_subject: 'Jwt subject is not allowed',
  expired: 'Jwt is expired',
  not_yet_valid: 'Jwt not yet valid',
  lives_too_long: 'Jwt max lifetime exceeded',
  claim_missing: 'Jwt expiration is missing',
  unknown_key: "Jwks doesn't have key to match kid or alg from Jwt",
  wrong_signature: 'Jwt verification fails',
  keys_unavailable: 'Jwks remote fetch is failed',
};

/**
 * envoy.filters.http.jwt_authn: who the end user is, by a token. A token that is shown must be good; what it says is there for rules of authorization and
 * for routes to match on.
 */
export const jwtAuthn: FilterKind = {
  name,
  create(any, place, { counters, random }) {
    const config = unpackConfig(JwtAuthenticationSchema, any, place);
    refuseUnsupported(JwtAuthenticationSchema, config, supported, place);
    const providers = new Map(Object.entries(config.providers).map(([key, message]) => [key, new Provider(key, message, place)]));
    // A rule without a requirement, or with one that tolerates bad tokens, verifies no others.
    const compile = (message: JwtRequirement | undefined, at: string): Requirement => {
      const requirement = compileRequirement(message, providers, at);
      if (message?.requiresType.case === undefined || toleratesFailure(message)) return requirement;
      return (findings, accepted) => {
        const outcome = requirement(findings, accepted);
        return outcome === 'fulfilled' ? (findings.problemOfOthers([...providers.values()], accepted) ?? outcome) : outcome;
      };
    };
    const named = new Map(Object.entries(config.requirementMap).map(([key, message]) => [key, compile(message, place)]));
    const rules = config.rules.map(({ match, requirementType: type }, i) => {
      const at = `${place}, rule ${i}`;
      const { path, conditions } = compileMatch(match, random, at);
      const requirement = type.case === 'requirementName' ? named.get(type.value) : compile(type.value, at);
      if (requirement === undefined) throw new MizzenError('invalid-filter', `${at}: there is no requirement ${JSON.stringify(type.value)}`);
      return { path, conditions, requirement };
    });
    const ownHeaders = [...new Set([...providers.values()].flatMap((provider) => provider.ownHeaders))];
    const tokenHeaders = [...new Set([...providers.values()].flatMap((provider) => provider.tokenHeaders))];

    const requirementFor = ({ head }: Exchange): Requirement | undefined => {
      const query = head.target.indexOf('?');
      const path = query < 0 ? head.target : head.target.slice(0, query);
      return rules.find((rule) => matchesPath(rule.path, path) && rule.conditions.every((condition) => condition.matches(head)))?.requirement;
    };

    return {
      name,
      secretParameters: [...providers.values()].flatMap((provider) => provider.tokenParameters),
      onRequest(exchange) {
        const { headers } = exchange.head;
        // Only from here may it come.
        for (const header of ownHeaders) headers.remove(header);
        if (headers.hasAliases) for (const header of tokenHeaders) headers.removeAliases(header);
        if (config.bypassCorsPreflight && isPreflight(exchange)) return 'continue';
        const requirement = requirementFor(exchange);
        if (requirement === undefined) return 'continue';
        const findings = new RequestFindings(exchange);
        const accepted: Accepted[] = [];
        const outcome = requirement(findings, accepted);
        if (outcome !== 'fulfilled') {
          counters.countRejection('jwt', outcome);
          refuse(exchange, outcome, config.stripFailureResponse);
          return 'stop';
        }
        let clearsRoute = false;
        for (const one of accepted) clearsRoute = take(exchange, one) || clearsRoute;
        if (clearsRoute) exchange.clearRoute();
        return 'continue';
      },
    };
  },
};

class RequestFindings implements Findings {
  readonly #exchange: Exchange;
  readonly #known: Map<Provider, ReturnType<Findings['of']>>;

  constructor(exchange: Exchange) {
    this.#exchange = exchange;
    this.#known = new Map();
  }

  of(provider: Provider): ReturnType<Findings['of']> {
    let found = this.#known.get(provider);
    if (found === undefined) this.#known.set(provider, (found = this.#look(provider)));
    return found;
  }

  /** Every token that a request shows must be good for one of the providers, and `authorization` is one field: the service may read any of them. */
  problemOfOthers(providers: readonly Provider[], accepted: readonly Accepted[]): TokenProblem | undefined {
    const { head } = this.#exchange;
    const { names } = head.headers;
    const at = names.indexOf('authorization');
    if (at >= 0 && names.indexOf('authorization', at + 1) >= 0) return 'malformed';
    const good = new Set(accepted.map(({ found }) => found.text));
    const problems = new Map<string, TokenProblem>();
    const now = Date.now();
    for (const provider of providers)
      for (const { text } of provider.tokensIn(head)) {
        if (good.has(text)) continue;
        const result = provider.verifier.remembered(text, now) ?? provider.verifier.verify(text, provider.keys, now);
        if (!('problem' in result)) good.add(text);
        else if (result.problem !== 'wrong_issuer' || !problems.has(text)) problems.set(text, result.problem);
      }
    for (const [text, problem] of problems) if (!good.has(text)) return problem;
    return undefined;
  }

  #look(provider: Provider): ReturnType<Findings['of']> {
    const now = Date.now();
    let problem: TokenProblem | 'missing' = 'missing';
    for (const found of provider.tokensIn(this.#exchange.head)) {
      const good = provider.verifier.remembered(found.text, now) ?? provider.verifier.verify(found.text, provider.keys, now);
      if (!('problem' in good)) return { accepted: { provider, found, good }, problem: undefined };
      problem = good.problem;
    }
    return { accepted: undefined, problem };
  }
}

/** Tells the next ones what the token says. True: routes are to be looked for anew. */
function take(exchange: Exchange, { provider, found, good }: Accepted): boolean {
  const { headers } = exchange.head;
  const { token } = good;
  if (!provider.forwardsToken) {
    if (found.place.kind === 'header') headers.remove(found.place.name);
    else if (found.place.kind === 'parameter') exchange.retarget(removeQueryParameter(exchange.head.target, found.place.name));
  }
  if (provider.payloadHeader !== '')
    headers.set(provider.payloadHeader, provider.padsPayload ? token.payload.padEnd(Math.ceil(token.payload.length / 4) * 4, '=') : token.payload);
  for (const { header, path } of provider.claimHeaders) {
    const value = headerText(
      path.reduce<unknown>((at, key) => (typeof at === 'object' && at !== null ? (at as Record<string, unknown>)[key] : undefined), token.claims),
    );
    if (value !== undefined) headers.set(header, value);
  }
  const values: Record<string, unknown> = {};
  if (provider.payloadKey !== '') values[provider.payloadKey] = provider.payloadOf(token);
  if (provider.headerKey !== '') values[provider.headerKey] = token.header;
  exchange.addMetadata(name, values);
  return provider.clearsRoute;
}

/** A claim as the value of a header, in UTF-8; what is more than one value as JSON in base64url, as Envoy has it. A claim with control characters is left out. */
function headerText(value: unknown): string | undefined {
  if (typeof value === 'string') return isHeaderValue(utf8Bytes(value)) ? utf8Bytes(value) : undefined;
  if (typeof value === 'number' || typeof value === 'boolean') return String(value);
  return typeof value === 'object' && value !== null ? Buffer.from(JSON.stringify(value)).toString('base64url') : undefined;
}

function isPreflight({ head: { method, headers } }: Exchange): boolean {
  return method === 'OPTIONS' && headers.has('origin') && headers.has('access-control-request-method');
}

function refuse(exchange: Exchange, outcome: Exclude<Outcome, 'fulfilled'>, isSilent: boolean): void {
  const text = isSilent ? '' : texts[outcome];
  const details = `jwt_authn_access_denied{${texts[outcome].replaceAll(' ', '_')}}`;
  const { head } = exchange;
  const scheme = head.headers.get('x-forwarded-proto') ?? 'http';
  // A token without end, or for somebody else, is no use here however often it is sent.
  const isForbidden = outcome === 'wrong_audience';
  const challenge = `Bearer realm="${scheme}://${head.authority}${head.target.split('?', 1)[0]}"${outcome === 'missing' ? '' : ', error="invalid_token"'}`;
  exchange.replyWith(isForbidden ? 403 : 401, text, details, isForbidden || isSilent ? [] : [['www-authenticate', challenge.replace(/[^\x20-\x7e]/g, '')]]);
}
