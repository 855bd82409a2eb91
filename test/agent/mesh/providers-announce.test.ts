/** When what this node has is announced; that it is found then is in providers.test.ts. */
import type { CID } from 'multiformats/cid'
import { expect, onTestFinished, test, vi } from 'vitest'
import { Providers, type ProvidersOptions } from '../../../agent/mesh/providers.ts'
import { quiet } from './nodes.ts'

const CIDS = [
  'bafkreibm6jg3ux5qumhcn2b3flc3tyu6dmlb4xa7u5bf44yegnrjhc4yeq',
  'bafkreigh2akiscaildcqabsyg3dfr6chu3fgpregiymsck7e7aqa4s52zy',
  'bafkreihdwdcefgh4dqkjv67uzcmw7ojee6xedzdetojuzjevtenxquvyku',
  'bafkreifjjcie6lypi6ny7amxnfftagclbuxndqonfipmb64f2km2devei4',
] as const

test('what was just published is announced some seconds later, when its record has gone out; what was taken back is not', async () => {
  vi.useFakeTimers()
  onTestFinished(() => void vi.useRealTimers())
  const announced: string[] = []
  const dht = {
    provide: (cid: CID) => {
      announced.push(cid.toString())
      return []
    },
    findProviders: () => [],
    cancelReprovide: async () => undefined,
  } as unknown as ProvidersOptions['dht']
  const host = { peerId: 'self', connected: () => ['peer'], onPeer: () => () => undefined }
  await using providers = Providers.start({ dht, host, log: quiet })
  const [early, one, two, three] = CIDS
  providers.provide(early)
  // With the first round of all that there is, and not once more after that.
  await vi.advanceTimersByTimeAsync(5_000)
  expect(announced.splice(0)).toEqual([early])
  providers.provide(one)
  await vi.advanceTimersByTimeAsync(1_000)
  providers.provide(two)
  providers.provide(three)
  providers.withdraw(three)
  await vi.advanceTimersByTimeAsync(1_000)
  expect(announced).toEqual([])
  await vi.advanceTimersByTimeAsync(2_000)
  expect(announced.sort()).toEqual([one, two].sort())
})
