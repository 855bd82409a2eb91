/** Warnings of `agent status` that parts of the node have of themselves, in the words for people. Each is silent where there is nothing to say. */
import type { Warning } from '../api/contract.ts'

/** Pushed store paths that could not be published. */
export function pushWarnings(failures: readonly { network: string; paths: number; reason: string }[]): Warning[] {
  return failures.map(({ network, paths, reason }) => ({
    code: 'push.unpublished',
    message: `${paths} store paths that were pushed are not published in "${network}": ${reason}`,
    next: 'The agent tries again by itself.',
  }))
}

/** Registries that are left alone at the moment, and why. */
export function registryWarnings(registries: readonly { prefix: string; resting: string | undefined }[]): Warning[] {
  return registries.flatMap(({ prefix, resting }) =>
    resting === undefined
      ? []
      : [
          {
            code: 'registry.resting',
            message: `the registry ${prefix} is not asked at the moment: ${resting}`,
            next: 'What it said last is served meanwhile, and it is tried again. Take it out of `registries` if it is gone.',
          },
        ],
  )
}

/** Forwards of the configuration that could not be begun. */
export function forwardWarnings(failed: readonly { text: string; reason: string }[]): Warning[] {
  return failed.map(({ text, reason }) => ({
    code: 'forward.failed',
    message: `the forward ${text} does not run: ${reason}`,
    next: 'Correct it in the configuration.',
  }))
}

/** Services of the configuration of which nobody said where, or nowhere that this node is. */
export function unplacedWarnings(services: readonly string[], networkCount: number): Warning[] {
  return services.map((text) => ({
    code: 'service.unplaced',
    message: `the service ${text} of the configuration is offered nowhere: this node is in ${networkCount} closed networks`,
    next: 'Say which one with ?network=NAME.',
  }))
}

type Sharing = { isOpen: boolean; isSharing: boolean; hasStore: boolean; failure: string | undefined }

/** Of the Nix store that is given out. */
export function shareWarnings({ isOpen, isSharing, hasStore, failure }: Sharing): Warning[] {
  const open: Warning = {
    code: 'share.open',
    message: 'everybody can have what is in the Nix store here: it is given out in the open network',
    next: 'If that is not what you want: `agent network share open published`.',
  }
  const noStore: Warning = {
    code: 'share.no-store',
    message: 'the Nix store is to be given out, and there is none on this machine',
    next: 'Install Nix, or say `agent network share NETWORK published`.',
  }
  const unsaid: Warning = {
    code: 'share.unsaid',
    message: `peers are not told of all that is in the Nix store here: ${failure}`,
    next: 'The agent tries again by itself.',
  }
  return [
    ...(isOpen ? [open] : []),
    ...(isSharing && !hasStore ? [noStore] : []),
    ...(failure === undefined || failure === '' ? [] : [unsaid]),
  ]
}

/** Names of services have no addresses. */
export function rangeWarnings(fault: { message: string; next?: string | undefined } | undefined): Warning[] {
  return fault === undefined ? [] : [{ code: 'names.no-range', message: fault.message, next: fault.next ?? '' }]
}
