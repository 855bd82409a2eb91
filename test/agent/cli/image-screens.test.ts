/** What people see of images: lists, one of them, what a tag meant, and the lines for programs. */
import { describe, expect, it } from 'vitest'
import type { ImageApi } from '../../../agent/api/image-api.ts'
import { AgentError } from '../../../agent/error.ts'
import { serve } from '../api/fake-agent.ts'
import { fakeImages } from '../api/fake-images.ts'
import { run } from './capture.ts'

async function ask(words: string[], replaced: Partial<ImageApi> = {}) {
  await using agent = await serve({ images: fakeImages(replaced) })
  return await run(words, { socket: agent.socket })
}

describe('images', () => {
  it('are listed with platforms, size, who holds them and who signed them', async () => {
    const asked: unknown[] = []
    const list: ImageApi['list'] = (words, limit, network, signal) => {
      asked.push([words, limit, network])
      return fakeImages().list(words, limit, network, signal)
    }
    const { status, out } = await ask(['image', 'ls', 'two', 'words', '-n', '7', '--network', 'home'], { list })
    expect(status).toBe(0)
    expect(asked).toEqual([['two words', 7, 'home']])
    expect(out).toMatch(/^IMAGE +PLATFORMS +SIZE +PUBLISHER +UPDATED +HELD BY +HERE +SIGNED\n/)
    expect(out).toMatch(/home\/team\/app:1 +linux\/amd64, linux\/arm64\/v8 +47\.7 MiB +pear .* 3 +part +ci\.pub/)
    expect((await ask(['image', 'ls'], { list: () => ({ images: [], truncated: false }) })).out).toContain(
      'podman push',
    )
    expect(JSON.parse((await ask(['image', 'ls', '--json'])).out)).toMatchObject({
      images: [{ name: 'home/team/app:1' }, {}],
    })
  })

  it('are shown whole, and an answer that is old is marked', async () => {
    const { out } = await ask(['image', 'show', 'home/team/app:1'])
    for (const part of ['linux/arm64/v8', 'version=1', 'verified by ci.pub', 'some of it', 'not connected'])
      expect(out).toContain(part)
    expect((await ask(['image', 'show', 'docker.io/library/app:1'])).out).toMatch(
      /Upstream +docker\.io, asked .* ago; it does not answer now/,
    )
    const show = () => {
      throw new AgentError('not-found', 'no image x is known here')
    }
    expect(await ask(['image', 'show', 'x'], { show })).toMatchObject({ status: 5 })
  })

  it('have a history, and are deleted', async () => {
    const { out } = await ask(['image', 'history', 'home/team/app:1'])
    expect(out).toMatch(
      /2026-01-02 00:00:00Z +deleted +pear\n2026-01-01 00:00:00Z +sha256:abababababab +pear +may not push there/,
    )
    expect((await ask(['image', 'rm', 'home/team/app:1'])).out).toMatch(/^Deleted home\/team\/app:1\n/)
  })

  it('are pulled by programs with the lines that are printed', async () => {
    const { out, status } = await ask(['oci-conf', 'podman'])
    expect([status, out]).toEqual([0, '[[registry]]\n'])
    expect(JSON.parse((await ask(['oci-conf', '--json', 'docker'])).out)).toMatchObject({ program: 'docker' })
    expect(await ask(['oci-conf', 'lynx'])).toMatchObject({ status: 2 })
  })
})
