// More strings
import { table } from "./strings.js";

export default table(`
history = History = 历史记录
history.all = All pictures = 全部图片
history.empty = No pictures yet. = 还没有图片。
history.off = This server keeps no pictures. = 此服务器不保存图片。
history.failed = The history cannot be read: {reason} = 无法读取历史记录：{reason}
history.use = Fill in all settings = 填入全部设置
history.useSeed = Fill in only the seed = 只填入种子
history.picture = {prompt}, {version}, seed {seed} = {prompt}，{version}，种子 {seed}
history.noPrompt = Without a prompt = 没有提示词
history.changed = The version changed here from {older} to {newer} = 版本在此处由 {older} 变为 {newer}
history.deleted = The picture is deleted. = 图片已删除。
history.undo = Undo = 撤销
history.deleteAll = Delete all = 全部删除
history.deleteAllQuestion = Delete all pictures ({n})? This cannot be undone. = 删除全部 {n} 张图片？此操作无法撤销。
search.words = Words of the prompt = 提示词中的词
search.anyVersion = Any version = 所有版本
search.seedLabel = Seed to find = 要查找的种子
search.wrongSeed = A seed is a whole number. = 种子必须是整数。
search.list = Pictures found = 找到的图片
search.count = {n} picture|{n} pictures = {n} 张图片
search.nothing = No picture matches. = 没有符合条件的图片。
search.indexing = Still reading the history: {percent} = 仍在读取历史记录：{percent}
detail = Details = 详情
detail.newer = Newer picture = 较新的图片
detail.older = Older picture = 较旧的图片
detail.place = {n} of {total} = 第 {n} 张，共 {total} 张
detail.version = Version = 版本
detail.digest = Digest = 摘要
detail.image = Made from = 原图
detail.mask = Mask = 蒙版
detail.loras = LoRA = LoRA
detail.model = Asked of = 请求的模型
detail.bytes = File size = 文件大小
detail.created = Made = 生成时间
detail.file = File = 文件
detail.copyPrompt = Copy prompt = 复制提示词
detail.copyCurl = Copy curl = 复制 curl 命令
detail.download = Download = 下载
detail.delete = Delete = 删除
copy.done = Copied. = 已复制。
copy.failed = The browser does not allow copying here. = 浏览器不允许在此处复制。
vote.up = Vote for this picture ({count}) = 赞成此图片（{count}）
vote.down = Vote against this picture ({count}) = 反对此图片（{count}）
pair = A / B = A / B
pair.title = Draw the same prompt and seed by two models = 用两个模型生成相同提示词和种子的图片
compare = Compare = 对比
compare.title = Same prompt and seed on the other version = 用另一版本生成相同提示词和种子的图片
compare.over = Slider = 滑块
compare.beside = Side by side = 并排
compare.smaller = Zoom out (−) = 缩小（−）
compare.larger = Zoom in (+) = 放大（+）
compare.fit = Fit = 适应
compare.divider = Divider between the pictures = 两张图片之间的分隔线
compare.list = Pictures to compare with = 可对比的图片
compare.failed = There is no picture to compare: {reason} = 没有可对比的图片：{reason}
compare.noOther = No other version is loaded. Deploy one, or choose any picture below. = 没有加载其他版本。请部署一个，或在下方任选图片。
versions.deploy = Deploy = 部署
versions.rollback = Roll back = 回滚
versions.load = Load the model = 加载模型
versions.nothing = No version serves. = 没有版本在提供服务。
versions.unloaded = The model is unloaded. = 模型已卸载。
versions.serving = {version} has served since {time}. = {version} 自 {time} 起提供服务。
versions.help = In the models directory, the command does the same. = 在模型目录中运行该命令，作用相同。
versions.isServing = Serving = 服务中
versions.isResident = Loaded = 已加载
versions.isSealed = Sealed = 已封存
versions.isUnsealed = Not sealed = 未封存
versions.sealedAt = sealed {time} = 封存于 {time}
versions.from = from {source} = 来自 {source}
versions.licence = licence {licence} = 许可证 {licence}
versions.made = made {time} = 制作于 {time}
versions.copyCommand = Copy the command for {version} = 复制 {version} 的命令
versions.link = Link = 链接
versions.to =  for {alias} = （{alias}）
versions.deployQuestion = Deploy {version}{to}? It serves once it is loaded; nothing is interrupted. = 部署 {version}{to}？加载后即提供服务，不中断任何任务。
versions.rollbackQuestion = Roll back to the version that served before{version}{to}? = 回滚到之前提供服务的版本{version}{to}？
versions.working = Verifying and loading… = 正在校验和加载…
versions.done = {version} serves now. = {version} 已开始提供服务。
versions.rejected = {version} is rejected; {serving} goes on serving. = {version} 被拒绝；{serving} 继续提供服务。
notDone = Not done: {reason} = 未完成：{reason}
versions.attempt.LOADING = Loading and verifying: {percent} = 正在加载和校验：{percent}
versions.attempt.WARMING = Drawing a first picture to warm up = 正在生成第一张图片以预热
versions.attempt.PROMOTED = Last deployed {time}, in {duration} = 上次部署于 {time}，用时 {duration}
versions.attempt.REJECTED = Rejected {time}: {reason} = {time} 被拒绝：{reason}
versions.attempt.ABANDONED = Given up {time}: {reason} = {time} 已放弃：{reason}
drop.here = Drop the picture to fill in its settings = 松开鼠标，填入这张图片的设置
drop.start = Drop it here to change the picture = 在此松开，修改这张图片
drop.choose = Settings from a picture… = 从图片读取设置…
drop.title = A PNG, JPEG or WebP of zwatch, AUTOMATIC1111 or ComfyUI; drop or paste it, too = zwatch、AUTOMATIC1111 或 ComfyUI 的 PNG、JPEG 或 WebP 图片；也可拖放或粘贴
drop.filled = The settings of the picture are filled in ({source}). = 已填入图片的设置（{source}）。
drop.failed = No settings from {name}: {reason} = 未能从 {name} 读取设置：{reason}
drop.tooLarge = the file is larger than 32 MiB = 文件大于 32 MiB
`);
