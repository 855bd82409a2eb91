/** `agent network share`: what is said of it, and that nobody gives his store to everybody by a slip. */
import { expect, it } from 'vitest'
import type { ShareApi, ShareRequest } from '../../../agent/api/share-contract.ts'
import { serve } from '../api/fake-agent.ts'
import { fakeShare } from '../api/fake-share.ts'
import { plain, run, type Surroundings } from './capture.ts'

function asker(replaced: Partial<ShareApi> = {}) {
  const requests: ShareRequest[] = []
  const real = fakeShare()
  const setShare = (request: ShareRequest) => {
    requests.push(request)
    return real.setShare(request)
  }
  const ask = async (words: string[], surroundings: Omit<Surroundings, 'socket'> = {}) => {
    await using agent = await serve({ sharing: { ...real, setShare, ...replaced } })
    const { out, err, status } = await run(['network', 'share', ...words], { socket: agent.socket, ...surroundings })
    return { out: plain(out), err: plain(err), status }
  }
  return { requests, ask }
}

it('is told, and changed', async () => {
  const { ask, requests } = asker()
  expect((await ask(['home'])).out).toBe('Members of home can have what this machine published there.\n')
  expect((await ask(['home', 'store'])).out).toBe(
    'Members of home can have the Nix store of this machine: 1234 paths.\n',
  )
  expect(JSON.parse((await ask(['home', '--json'])).out)).toMatchObject({ share: 'store', paths: 1_234 })
  expect((await ask(['home', 'published'])).out).toContain('published')
  expect(requests).toEqual([
    { network: 'home', share: 'store' },
    { network: 'home', share: 'published' },
  ])
  expect(await ask(['home', 'all'])).toMatchObject({ status: 2, err: expect.stringContaining('`published`') })
  expect((await ask([])).status).toBe(2)
})

it('tells when nobody would see it', async () => {
  const unseen = { why: 'no grant gives content:publish', next: 'The policy decides: `agent policy show`.' }
  const view = { network: 'home', id: 'ab', share: 'store' as const, paths: null, unseen }
  const { out } = await asker({ setShare: () => view }).ask(['home', 'store'])
  expect(out).toContain('Nobody there sees it: no grant gives content:publish')
  expect(out).toContain('agent policy show')
})

it('asks before everybody is given the store, and wants it said where it cannot ask', async () => {
  const { ask, requests } = asker()
  const script = await ask(['open', 'store'])
  expect(script).toMatchObject({ status: 2, err: expect.stringContaining('--yes') })
  const no = await ask(['open', 'store'], { columns: 100, answers: ['n'] })
  expect(no.status).not.toBe(0)
  expect(no.err).toContain('sources of your own projects included')
  expect(requests).toEqual([])
  expect((await ask(['open', 'store'], { columns: 100, answers: ['y'] })).out).toContain(
    'Everybody can have the Nix store',
  )
  expect((await ask(['open', 'store', '--yes'])).status).toBe(0)
  // To take it back is no question.
  expect((await ask(['open', 'published'])).status).toBe(0)
  expect(requests.map(({ share }) => share)).toEqual(['store', 'store', 'published'])
})
