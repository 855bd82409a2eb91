/** A ShareApi with known answers: the part of fake-agent.ts that is about what is given out in a network. */
import type { ShareApi, ShareMode } from '../../../agent/api/share-contract.ts'

export function fakeShare(): ShareApi {
  const modes = new Map<string, ShareMode>()
  const share = (network: string) => {
    const mode = modes.get(network) ?? 'published'
    return { network, id: 'ab'.repeat(32), share: mode, paths: mode === 'store' ? 1_234 : null }
  }
  return {
    share,
    setShare: ({ network, share: mode }) => {
      modes.set(network, mode)
      return share(network)
    },
  }
}
