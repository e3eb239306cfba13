// More strings
import { table } from "./strings.js";

export default table(`
history = History = 历史记录
.all = All pictures = 全部图片
.empty = No pictures yet. = 还没有图片。
.off = This server keeps no pictures. = 此服务器不保存图片。
.failed = The history cannot be read: {reason} = 无法读取历史记录：{reason}
.use = Fill in all settings = 填入全部设置
.useSeed = Fill in only the seed = 只填入种子
.picture = {prompt}, {version}, seed {seed} = {prompt}，{version}，种子 {seed}
.noPrompt = Without a prompt = 没有提示词
.changed = The version changed here from {older} to {newer} = 版本在此处由 {older} 变为 {newer}
.deleted = The picture is deleted. = 图片已删除。
.undo = Undo = 撤销
.deleteAll = Delete all = 全部删除
.deleteAllQuestion = Delete all pictures ({n})? This cannot be undone. = 删除全部 {n} 张图片？此操作无法撤销。
search.words = Words of the prompt = 提示词中的词
.anyVersion = Any version = 所有版本
.seedLabel = Seed to find = 要查找的种子
.wrongSeed = A seed is a whole number. = 种子必须是整数。
.list = Pictures found = 找到的图片
.count = {n} picture|{n} pictures = {n} 张图片
.nothing = No picture matches. = 没有符合条件的图片。
.indexing = Still reading the history: {percent} = 仍在读取历史记录：{percent}
detail = Details = 详情
.newer = Newer picture = 较新的图片
.older = Older picture = 较旧的图片
.place = {n} of {total} = 第 {n} 张，共 {total} 张
.version = Version = 版本
.digest = Digest = 摘要
.image = Made from = 原图
.mask = Mask = 蒙版
.loras = LoRA = LoRA
.model = Asked of = 请求的模型
.bytes = File size = 文件大小
.created = Made = 生成时间
.file = File = 文件
.copyPrompt = Copy prompt = 复制提示词
.copyCurl = Copy curl = 复制 curl 命令
.download = Download = 下载
.delete = Delete = 删除
copy.done = Copied. = 已复制。
.failed = The browser does not allow copying here. = 浏览器不允许在此处复制。
vote.up = Vote for this picture ({count}) = 赞成此图片（{count}）
.down = Vote against this picture ({count}) = 反对此图片（{count}）
pair = A / B = A / B
.title = Draw the same prompt and seed by two models = 用两个模型生成相同提示词和种子的图片
compare = Compare = 对比
.title = Same prompt and seed on the other version = 用另一版本生成相同提示词和种子的图片
.over = Slider = 滑块
.beside = Side by side = 并排
.smaller = Zoom out (−) = 缩小（−）
.larger = Zoom in (+) = 放大（+）
.fit = Fit = 适应
.divider = Divider between the pictures = 两张图片之间的分隔线
.list = Pictures to compare with = 可对比的图片
.failed = There is no picture to compare: {reason} = 没有可对比的图片：{reason}
.noOther = No other version is loaded. Deploy one, or choose any picture below. = 没有加载其他版本。请部署一个，或在下方任选图片。
replicas = Replicas = 副本
.state = State = 状态
.drawn = Drawn = 已生成
.STARTING = starting = 正在启动
.PREPARING = preparing = 准备中
.READY = ready = 就绪
.OUT = out of the fleet = 已退出
.LOST = lost = 已丢失
.LEAVING = ending = 正在结束
versions.deploy = Deploy = 部署
.rollback = Roll back = 回滚
.load = Load the model = 加载模型
.nothing = No version serves. = 没有版本在提供服务。
.unloaded = The model is unloaded. = 模型已卸载。
.serving = {version} has served since {time}. = {version} 自 {time} 起提供服务。
.help = In the models directory, the command does the same. = 在模型目录中运行该命令，作用相同。
.isServing = Serving = 服务中
.isResident = Loaded = 已加载
.isSealed = Sealed = 已封存
.isUnsealed = Not sealed = 未封存
.sealedAt = sealed {time} = 封存于 {time}
.from = from {source} = 来自 {source}
.licence = licence {licence} = 许可证 {licence}
.made = made {time} = 制作于 {time}
.copyCommand = Copy the command for {version} = 复制 {version} 的命令
.link = Link = 链接
.to =  for {alias} = （{alias}）
.deployQuestion = Deploy {version}{to}? It serves once it is loaded; nothing is interrupted. = 部署 {version}{to}？加载后即提供服务，不中断任何任务。
.rollbackQuestion = Roll back to the version that served before{version}{to}? = 回滚到之前提供服务的版本{version}{to}？
.working = Verifying and loading… = 正在校验和加载…
.done = {version} serves now. = {version} 已开始提供服务。
.rejected = {version} is rejected; {serving} goes on serving. = {version} 被拒绝；{serving} 继续提供服务。
notDone = Not done: {reason} = 未完成：{reason}
versions.attempt.LOADING = Loading and verifying: {percent} = 正在加载和校验：{percent}
.attempt.WARMING = Drawing a first picture to warm up = 正在生成第一张图片以预热
.attempt.PROMOTED = Last deployed {time}, in {duration} = 上次部署于 {time}，用时 {duration}
.attempt.REJECTED = Rejected {time}: {reason} = {time} 被拒绝：{reason}
.attempt.ABANDONED = Given up {time}: {reason} = {time} 已放弃：{reason}
drop.here = Drop the picture to fill in its settings = 松开鼠标，填入这张图片的设置
.start = Drop it here to change the picture = 在此松开，修改这张图片
.choose = Settings from a picture… = 从图片读取设置…
.title = A PNG, JPEG or WebP of zwatch, AUTOMATIC1111 or ComfyUI; drop or paste it, too = zwatch、AUTOMATIC1111 或 ComfyUI 的 PNG、JPEG 或 WebP 图片；也可拖放或粘贴
.filled = The settings of the picture are filled in ({source}). = 已填入图片的设置（{source}）。
.failed = No settings from {name}: {reason} = 未能从 {name} 读取设置：{reason}
.tooLarge = the file is larger than 32 MiB = 文件大于 32 MiB
`);
