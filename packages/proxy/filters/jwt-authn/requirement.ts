import { MizzenError } from '@mizzen/common';
import type { JwtRequirement } from '@mizzen/envoy-api/gen/envoy/extensions/filters/http/jwt_authn/v3/config_pb.js';
import type { GoodToken, TokenProblem } from '../../jwt/token-verifier.ts';
import type { FoundToken, Provider } from './provider.ts';

/** A token that a provider has accepted. */
export interface Accepted {
  readonly provider: Provider;
  readonly found: FoundToken;
  readonly good: GoodToken;
}

/** What each provider makes of one request. */
export interface Findings {
  /** What is wrong with the tokens that a request shows beside the accepted ones; undefined: nothing. */
  problemOfOthers(providers: readonly Provider[], accepted: readonly Accepted[]): TokenProblem | undefined;
  of(provider: Provider): { readonly accepted: Accepted | undefined; readonly problem: TokenProblem | 'missing' | undefined };
}

export type Outcome = TokenProblem | 'missing' | 'fulfilled';

/** What a request must show (envoy jwt_authn config.proto `JwtRequirement`). Adds the tokens that fulfil it to `accepted`. */
export type Requirement = (findings: Findings, accepted: Accepted[]) => Outcome;

/** Whether a bad token may pass, because the requirement says so. */
export function toleratesFailure(message: JwtRequirement | undefined): boolean {
  const type = message?.requiresType;
  if (type?.case === 'allowMissingOrFailed') return true;
  if (type?.case === 'requiresAny') return type.value.requirements.some(toleratesFailure);
  return type?.case === 'requiresAll' && type.value.requirements.every(toleratesFailure);
}

const nothingRequired: Requirement = () => 'fulfilled';

export function compileRequirement(message: JwtRequirement | undefined, providers: ReadonlyMap<string, Provider>, place: string): Requirement {
  const { requiresType: type } = message ?? { requiresType: { case: undefined } };
  switch (type.case) {
    case undefined:
      return nothingRequired;
    case 'providerName': {
      const provider = providers.get(type.value);
      if (provider === undefined) throw new MizzenError('invalid-filter', `${place}: there is no provider ${JSON.stringify(type.value)}`);
      return (findings, accepted) => {
        const one = findings.of(provider);
        if (one.accepted !== undefined) accepted.push(one.accepted);
        return one.problem ?? 'fulfilled';
      };
    }
    case 'allowMissing':
    case 'allowMissingOrFailed':
      return nothingRequired;
    case 'requiresAll': {
      const all = type.value.requirements.map((one) => compileRequirement(one, providers, place));
      return (findings, accepted) => {
        for (const one of all) {
          const outcome = one(findings, accepted);
          if (outcome !== 'fulfilled') return outcome;
        }
        return 'fulfilled';
      };
    }
    case 'requiresAny': {
      const { requirements } = type.value;
      const mayFail = requirements.some(({ requiresType }) => requiresType.case === 'allowMissingOrFailed');
      const mayMiss = requirements.some(({ requiresType }) => requiresType.case === 'allowMissing');
      const any = requirements
        .filter(({ requiresType }) => requiresType.case !== 'allowMissing' && requiresType.case !== 'allowMissingOrFailed')
        .map((one) => compileRequirement(one, providers, place));
      return (findings, accepted) => {
        let worst: Outcome = 'missing';
        for (const one of any) {
          const taken: Accepted[] = [];
          const outcome = one(findings, taken);
          if (outcome === 'fulfilled') {
            accepted.push(...taken);
            return 'fulfilled';
          }
          worst = moreTelling(worst, outcome);
        }
        if (mayFail) return 'fulfilled';
        return mayMiss && worst === 'missing' ? 'fulfilled' : worst;
      };
    }
    default:
      throw new MizzenError('unsupported-filter', `${place}: a requirement of type ${type.case} is not supported`);
  }
}

/** That somebody else's token was shown says less than what is wrong with it. */
function moreTelling(a: Outcome, b: Outcome): Outcome {
  const rank = (outcome: Outcome) => (outcome === 'missing' ? 0 : outcome === 'wrong_issuer' ? 1 : 2);
  return rank(b) > rank(a) ? b : a;
}
